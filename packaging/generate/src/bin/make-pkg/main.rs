//! Writes a macOS installer package (a "flat package") on any system, as `pkgbuild` and `productbuild` do on macOS:
//! a xar archive of the installer's plan and one component, whose `Payload` and `Scripts` are gzipped cpio archives and
//! whose `Bom` lists the payload once more. The same input gives the same bytes.
//!
//! `make-pkg LAYOUT OUTPUT`; `packaging/macos/build` makes the layout:
//!
//! | in LAYOUT | becomes |
//! | --- | --- |
//! | `root/` | the files that are installed, below `/`, owned by root and its group |
//! | `scripts/` | what the installer runs; `postinstall` must be there |
//! | `resources/` | the texts that the installer shows |
//! | `distribution.xml` | the installer's plan; what is in `component.pkg` it names as `#component.pkg` |
//! | `PackageInfo` | the component's description |
//!
//! In both texts `@FILES@` and `@KBYTES@` become the number of entries in the payload and their size.

mod bom;
mod cpio;
mod tree;
mod xar;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Parser;
use flate2::{Compression, GzBuilder};

use crate::tree::Entry;

/// The directory in the archive that holds the component; `distribution.xml` refers to it.
const COMPONENT: &str = "component.pkg";

/// Writes a macOS installer package on any system
#[derive(Parser)]
struct Arguments {
    /// The directory with `root`, `scripts`, `resources`, `distribution.xml` and `PackageInfo`
    layout: PathBuf,
    /// The package to write
    output: PathBuf,
    /// The date of everything in the package, in seconds since 1970
    #[arg(long, env = "SOURCE_DATE_EPOCH", default_value_t = 0)]
    date: u32,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let archive = package(&arguments.layout, arguments.date)?;
    fs::write(&arguments.output, archive).with_context(|| format!("can't write {}", arguments.output.display()))
}

fn package(layout: &Path, date: u32) -> anyhow::Result<Vec<u8>> {
    let payload = tree::read(&layout.join("root"))?;
    let scripts = tree::read(&layout.join("scripts"))?;
    ensure!(scripts.iter().any(|entry| entry.path == "postinstall"), "scripts/postinstall is not there");
    let resources = tree::read(&layout.join("resources"))?;
    let mut archive = xar::Archive::new(date);
    archive.file("Distribution", text(&layout.join("distribution.xml"), &payload)?);
    let texts = resources.iter().filter_map(|entry| Some((entry.path.as_str(), entry.content.clone()?)));
    archive.directory("Resources", texts.collect());
    archive.directory(
        COMPONENT,
        vec![
            ("Bom", bom::write(&payload, date)?),
            ("PackageInfo", text(&layout.join("PackageInfo"), &payload)?),
            ("Payload", gzip(&cpio::write(&payload, date)?)?),
            ("Scripts", gzip(&cpio::write(&scripts, date)?)?),
        ],
    );
    archive.finish()
}

/// A text of the layout, with what only the payload tells.
fn text(path: &Path, payload: &[Entry]) -> anyhow::Result<Vec<u8>> {
    let text = fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?;
    let bytes: usize = payload.iter().filter_map(|entry| entry.content.as_ref()).map(Vec::len).sum();
    let text = text.replace("@FILES@", &payload.len().to_string());
    Ok(text.replace("@KBYTES@", &bytes.div_ceil(1024).to_string()).into_bytes())
}

/// Without a name and a date, so that the same input gives the same bytes.
fn gzip(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().write(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}
