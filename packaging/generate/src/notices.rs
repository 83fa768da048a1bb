//! The licence texts of the crates that are linked into the binary: most of them ask to be passed on with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::Value;

const HEAD: &str = "\
osquery-remote-tls contains these crates, under the licences named; their texts follow, each once, as the crates
bring them.
";

/// How the names of files begin that hold licences and notices.
const NAMES: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];

/// For a target triple, or the machine's own.
pub(crate) fn text(target: Option<String>) -> anyhow::Result<String> {
    let metadata = metadata(&target.map_or_else(host, Ok)?)?;
    let crates = linked(&metadata)?;
    let mut text = HEAD.to_owned();
    let mut bodies: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    text.push('\n');
    for package in &crates {
        let title = format!("{} {}", string(package, "name")?, string(package, "version")?);
        writeln!(text, "{title}: {}", string(package, "license").unwrap_or("see its text"))?;
        for (name, body) in texts(Path::new(string(package, "manifest_path")?))? {
            bodies.entry(body).or_default().insert(format!("{title} ({name})"));
        }
    }
    for (body, sources) in &bodies {
        let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
        write!(text, "\n{}\n{}\n\n{}\n", "-".repeat(78), sources.join(", "), body.trim_end())?;
    }
    Ok(text)
}

fn metadata(target: &str) -> anyhow::Result<Value> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args(["metadata", "--locked", "--format-version=1", "--filter-platform", target]);
    cargo.arg("--manifest-path").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml"));
    let output = cargo.output().context("can't run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata answers no JSON")
}

/// The machine's own target triple.
fn host() -> anyhow::Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("can't run rustc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    Ok(host.to_owned())
}

/// The crates that end in the binary: normal dependencies, at any depth, that are no procedural macros.
fn linked(metadata: &Value) -> anyhow::Result<Vec<&Value>> {
    let packages = by_id(metadata, "/packages")?;
    let nodes = by_id(metadata, "/resolve/nodes")?;
    let root = packages
        .iter()
        .find(|(_, package)| package["name"] == "osquery-remote-tls")
        .map(|(id, _)| *id)
        .context("the package is not in cargo's metadata")?;
    let mut found = BTreeSet::new();
    let mut open = vec![root];
    while let Some(id) = open.pop() {
        let package = packages.get(id).context("a package is not in cargo's metadata")?;
        if is_macro(package) || !found.insert(id) {
            continue;
        }
        let dependencies = nodes.get(id).and_then(|node| node["deps"].as_array()).into_iter().flatten();
        open.extend(dependencies.filter(|dependency| is_normal(dependency)).filter_map(|it| it["pkg"].as_str()));
    }
    found.remove(root);
    let mut crates: Vec<&Value> = found.iter().filter_map(|id| packages.get(id).copied()).collect();
    crates.sort_by_key(|package| (package["name"].as_str(), package["version"].as_str()));
    Ok(crates)
}

fn by_id<'a>(metadata: &'a Value, pointer: &str) -> anyhow::Result<BTreeMap<&'a str, &'a Value>> {
    let list = metadata.pointer(pointer).and_then(Value::as_array);
    let list = list.with_context(|| format!("cargo's metadata has no {pointer}"))?;
    list.iter().map(|item| Ok((string(item, "id")?, item))).collect()
}

fn is_macro(package: &Value) -> bool {
    let targets = package["targets"].as_array().into_iter().flatten();
    targets.flat_map(|target| target["kind"].as_array().into_iter().flatten()).any(|kind| kind == "proc-macro")
}

fn is_normal(dependency: &Value) -> bool {
    dependency["dep_kinds"].as_array().into_iter().flatten().any(|kind| kind["kind"].is_null())
}

/// The licence files beside a manifest: name and text, by name.
fn texts(manifest: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let directory = manifest.parent().context("a manifest is in no directory")?;
    let entries = fs::read_dir(directory).with_context(|| format!("can't read {}", directory.display()))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.is_file());
    paths.sort();
    let mut texts = Vec::new();
    for path in paths {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if NAMES.iter().any(|start| name.to_uppercase().starts_with(start)) {
            let text = fs::read(&path).with_context(|| format!("can't read {}", path.display()))?;
            texts.push((name, String::from_utf8_lossy(&text).replace('\r', "")));
        }
    }
    Ok(texts)
}

fn string<'a>(value: &'a Value, name: &str) -> anyhow::Result<&'a str> {
    value[name].as_str().with_context(|| format!("cargo's metadata has no {name}"))
}
