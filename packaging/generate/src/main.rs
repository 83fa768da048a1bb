//! Writes what the packages contain and the code knows: man pages and shell completions from the command line's
//! definition, the settings file with every flag of ours, and the notices of the crates that the binary is made of.
//!
//! `generate DIRECTORY`, as `packaging/build` calls it.

mod man;
mod notices;
mod settings_file;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Command, CommandFactory};
use clap_complete::Shell;
use osquery_remote_tls::cli::Cli;

/// The name under which the program is on the PATH.
const COMMAND: &str = "osquery-remote-tls";

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(directory), None) = (arguments.next(), arguments.next()) else {
        bail!("one argument is needed: the directory to write to");
    };
    for (name, page) in man::pages(command())? {
        write(&directory.join("man").join(name), &page)?;
    }
    for (shell, name) in [
        (Shell::Bash, "osquery-remote-tls.bash"),
        (Shell::Zsh, "_osquery-remote-tls"),
        (Shell::Fish, "osquery-remote-tls.fish"),
    ] {
        write(&directory.join("completions").join(name), &completion(shell))?;
    }
    write(&directory.join("remote_tls.flags"), settings_file::text().as_bytes())?;
    write(&directory.join("THIRD-PARTY"), notices::text()?.as_bytes())
}

/// The command line, without the `help` that clap adds to subcommands.
fn command() -> Command {
    Cli::command().disable_help_subcommand(true)
}

fn completion(shell: Shell) -> Vec<u8> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command(), COMMAND, &mut text);
    text
}

fn write(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory).with_context(|| format!("can't make {}", directory.display()))?;
    fs::write(path, content).with_context(|| format!("can't write {}", path.display()))
}
