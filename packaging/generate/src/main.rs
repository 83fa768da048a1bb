//! Writes what the packages contain and the code knows: man pages and shell completions from the command line's
//! definition, the settings file with every flag of ours, and the notices of the crates that the binary is made of.
//!
//! `generate DIRECTORY [TARGET]`, as `packaging/build` calls it; the target is the one whose notices and paths are
//! written.

mod man;
mod notices;
mod places;
mod settings_file;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Command, CommandFactory};
use clap_complete::Shell;
use osquery_remote_tls::cli::Cli;
use osquery_remote_tls::platform::Places;

/// The name under which the program is on the PATH.
const COMMAND: &str = "osquery-remote-tls";

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(directory), target, None) = (arguments.next(), arguments.next(), arguments.next()) else {
        bail!("needed are the directory to write to and, unless it is this machine's, the target");
    };
    let directory = PathBuf::from(directory);
    let target = target.map(|target| target.to_string_lossy().into_owned());
    let places = match &target {
        Some(target) if target.ends_with("-apple-darwin") => Places::MACOS,
        Some(_) => Places::LINUX,
        None => Places::HERE,
    };
    for (name, page) in man::pages(command())? {
        write(&directory.join("man").join(name), places::replace(&page, &places).as_bytes())?;
    }
    for (shell, name) in [
        (Shell::Bash, "osquery-remote-tls.bash"),
        (Shell::Zsh, "_osquery-remote-tls"),
        (Shell::Fish, "osquery-remote-tls.fish"),
    ] {
        write(&directory.join("completions").join(name), places::replace(&completion(shell), &places).as_bytes())?;
    }
    let settings = places::replace(settings_file::text().as_bytes(), &places);
    write(&directory.join("remote_tls.flags"), settings.as_bytes())?;
    write(&directory.join("THIRD-PARTY"), notices::text(target)?.as_bytes())
}

/// The command line, without the `help` that clap adds to subcommands.
fn command() -> Command {
    Cli::command().disable_help_subcommand(true)
}

fn completion(shell: Shell) -> Vec<u8> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut shown(&command()), COMMAND, &mut text);
    text
}

/// Without what is hidden, which clap_complete doesn't leave out.
fn shown(command: &Command) -> Command {
    let name: &'static str = command.get_name().to_owned().leak();
    let arguments = command.get_arguments().filter(|argument| !argument.is_hide_set()).cloned();
    let subcommands = command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()).map(shown);
    let about = command.get_about().cloned().unwrap_or_default();
    let copy = Command::new(name).about(about).args(arguments).subcommands(subcommands).disable_help_subcommand(true);
    if command.get_version().is_some() { copy.version(env!("CARGO_PKG_VERSION")) } else { copy }
}

fn write(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory).with_context(|| format!("can't make {}", directory.display()))?;
    fs::write(path, content).with_context(|| format!("can't write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completions_have_every_command_and_nothing_hidden() {
        for (shell, hidden) in [
            (Shell::Bash, ["--resume", "--worker "]),
            (Shell::Zsh, ["--resume", "--worker["]),
            (Shell::Fish, ["-l resume", "-l worker "]),
        ] {
            let text = String::from_utf8(completion(shell)).unwrap();
            for shown in ["doctor", "flare", "retry", "metrics_file", "version"] {
                assert!(text.contains(shown), "{shell}: {shown} is missing");
            }
            for hidden in hidden {
                assert!(!text.contains(hidden), "{shell}: {hidden} is shown");
            }
        }
    }
}
