//! The programs that are measured. What is built here is always the release build, whatever this program's own is.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What is to be run, and where results of a run may lie.
#[derive(Clone)]
pub(crate) struct Programs {
    /// This extension.
    pub(crate) extension: PathBuf,
    /// The logger on `osquery-rust-ng`.
    pub(crate) neighbour: PathBuf,
    /// A Python with the `osquery` bindings, or why there is none.
    pub(crate) python: Result<PathBuf, String>,
    /// On the disk that the sources are on: a temporary directory may be memory, where nothing waits for a disk.
    pub(crate) scratch: PathBuf,
}

impl Programs {
    /// Builds them, but for an extension that is there already.
    pub(crate) fn build(extension: Option<&Path>) -> Result<Self, String> {
        let here = std::env::current_exe().map_err(|error| error.to_string())?;
        let target = here.ancestors().nth(2).ok_or("this program is in no target directory")?;
        // Apart, so that each has the features of its dependencies that it asks for, as when it is shipped.
        eprintln!("bench: building what is measured (release)");
        let ours = "osquery-remote-tls";
        for package in [ours, "neighbour"].into_iter().filter(|package| *package != ours || extension.is_none()) {
            build(package, target, &[])?;
        }
        let extension = extension.map_or(Ok(target.join("release").join(ours)), std::path::absolute);
        let scratch = target.join("bench");
        std::fs::create_dir_all(&scratch).map_err(|error| error.to_string())?;
        Ok(Self {
            extension: extension.map_err(|error| error.to_string())?,
            neighbour: target.join("release/neighbour-logger"),
            python: python(&scratch.join("python")),
            scratch,
        })
    }

    /// The same with an extension that has its symbols, for a profiler, and is otherwise the release build.
    pub(crate) fn with_symbols(&self) -> Result<Self, String> {
        let target = self.scratch.join("profile");
        let symbols = [("CARGO_PROFILE_RELEASE_STRIP", "none"), ("CARGO_PROFILE_RELEASE_DEBUG", "1")];
        build("osquery-remote-tls", &target, &symbols)?;
        Ok(Self { extension: target.join("release/osquery-remote-tls"), ..self.clone() })
    }

    /// Whether the extension knows a flag of ours.
    pub(crate) fn knows_flag(&self, name: &str) -> bool {
        let help = Command::new(&self.extension).arg("--help").output().map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&help).contains(&format!("--{name}"))
    }
}

/// The release build of a package's programs.
fn build(package: &str, target: &Path, environment: &[(&str, &str)]) -> Result<(), String> {
    let mut build = testkit::programs::cargo();
    build.envs(environment.iter().copied());
    build.args(["build", "--quiet", "--locked", "--release", "-p", package, "--bins", "--target-dir"]).arg(target);
    let status = build.status().map_err(|error| format!("cargo: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{package} could not be built")) }
}

/// The extension in Python.
pub(crate) fn python_logger() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/logger.py")
}

/// A virtual environment with the bindings, made once.
fn python(environment: &Path) -> Result<PathBuf, String> {
    let python = environment.join("bin/python");
    let has_bindings = |python: &Path| run(Command::new(python).args(["-c", "import osquery"])).is_ok();
    if !has_bindings(&python) {
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(environment))?;
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "osquery==3.1.1"]))?;
    }
    has_bindings(&python).then_some(python).ok_or_else(|| "the bindings can't be imported".to_owned())
}

/// Runs a command to its end, and answers what it wrote. The error is the last line of its errors.
pub(crate) fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{}: {error}", command.get_program().display()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let error = String::from_utf8_lossy(&output.stderr);
    Err(error.lines().last().unwrap_or("it failed and says nothing").to_owned())
}
