//! Programs of the workspace that tests start: built when they are needed, beside the program that needs them.

use std::collections::BTreeMap;
use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// What cargo sets for the programs that it runs. Build scripts that depend on it would run again, and all that depends
/// on them would be compiled again, at each change between a cargo within a test and the one outside.
const OF_THE_OUTER_CARGO: [&str; 2] = ["CARGO_MANIFEST_", "CARGO_PKG_"];

static BUILT: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());

/// A program of a member of the workspace, for a test: built when it isn't yet, as the test itself was. The error is
/// one of cargo's, which has said why.
pub fn program(name: &str) -> io::Result<PathBuf> {
    let mut built = crate::lock(&BUILT);
    if let Some(path) = built.get(name) {
        return Ok(path.clone());
    }
    let path = build(name)?;
    built.insert(name.to_owned(), path.clone());
    Ok(path)
}

/// The extension for a program of this kit: built beside it, as it was.
pub fn extension() -> io::Result<PathBuf> {
    let here = env::current_exe()?;
    let directory = here.parent().unwrap_or(Path::new("."));
    let mut cargo = cargo();
    cargo.args(["build", "--quiet", "--locked", "-p", "osquery-remote-tls", "--bins"]);
    cargo.arg("--target-dir").arg(directory.parent().unwrap_or(directory));
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    if !cargo.status()?.success() {
        return Err(io::Error::other("the extension could not be built"));
    }
    Ok(directory.join("osquery-remote-tls"))
}

/// Cargo in this workspace, without what another one has told this program of itself.
#[must_use]
pub fn cargo() -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let outer = |name: &str| OF_THE_OUTER_CARGO.iter().any(|prefix| name.starts_with(prefix));
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(outer)) {
        cargo.env_remove(name);
    }
    cargo
}

/// A test lies in `deps`, below the directory of the programs. With the features that the whole workspace asks of the
/// dependencies, as `cargo test --workspace` has compiled them: with the package's own they would be compiled again.
fn build(name: &str) -> io::Result<PathBuf> {
    let here = env::current_exe()?;
    let directory = here.parent().and_then(Path::parent).ok_or(io::ErrorKind::NotFound)?;
    let mut cargo = cargo();
    cargo.args(["build", "--quiet", "--locked", "--workspace", "--bin", name]);
    cargo.arg("--target-dir").arg(directory.parent().ok_or(io::ErrorKind::NotFound)?);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    match cargo.status()?.success() {
        true => Ok(directory.join(name)),
        false => Err(io::Error::other(format!("{name} could not be built"))),
    }
}
