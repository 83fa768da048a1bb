//! What make-pkg writes is read by programs of others: bsdtar (xar, cpio and gzip) and the crate apple-bom.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use apple_bom::ParsedBom;
use tempfile::TempDir;

/// 2026-01-02 03:04:05 UTC.
const DATE: u32 = 1_767_323_045;

/// A layout as `packaging/macos/build` makes it, and the place for its package.
struct Layout {
    directory: TempDir,
}

impl Layout {
    fn new() -> Self {
        let layout = Self { directory: TempDir::new().unwrap() };
        // Large enough that its checksum's length takes three bytes.
        layout.write("root/opt/ours/program", &[7; 100_000], 0o755);
        layout.write("root/opt/ours/share/doc/LICENSE", b"be kind\n", 0o644);
        layout.write("root/opt/ours/share/empty", b"", 0o600);
        layout.write("scripts/postinstall", b"#!/bin/sh\nexit 0\n", 0o755);
        layout.write("resources/a&b.txt", b"read me", 0o644);
        layout.write("distribution.xml", b"<plan kbytes=\"@KBYTES@\">#component.pkg</plan>", 0o644);
        layout.write("PackageInfo", b"<info files=\"@FILES@\" kbytes=\"@KBYTES@\"/>", 0o644);
        layout
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("layout").join(name)
    }

    fn write(&self, name: &str, content: &[u8], mode: u32) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn make(&self, output: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_make-pkg"));
        command.arg(self.path("")).arg(self.directory.path().join(output)).env("SOURCE_DATE_EPOCH", DATE.to_string());
        command.output().unwrap()
    }

    /// The package made and unpacked; the directory that has what was in it.
    fn unpacked(&self) -> PathBuf {
        let output = self.make("ours.pkg");
        assert!(output.status.success(), "{output:?}");
        let directory = self.directory.path().join("unpacked");
        unpack(&self.directory.path().join("ours.pkg"), &directory);
        for archive in ["Payload", "Scripts"] {
            let archive = directory.join("component.pkg").join(archive);
            unpack(&archive, &archive.with_extension("content"));
        }
        directory
    }

    fn refusal(&self) -> String {
        let output = self.make("refused.pkg");
        assert!(!output.status.success(), "it was made");
        assert!(!self.directory.path().join("refused.pkg").exists());
        String::from_utf8(output.stderr).unwrap()
    }
}

/// macOS's own tar is bsdtar.
fn bsdtar() -> Command {
    Command::new(if cfg!(target_os = "macos") { "tar" } else { "bsdtar" })
}

/// Whether there is one; where there is none, a test says that it is skipped. CI installs it.
fn has_bsdtar() -> bool {
    let has = bsdtar().arg("--version").output().is_ok_and(|output| output.status.success());
    if !has {
        eprintln!("skipped, it needs bsdtar: Debian's package is libarchive-tools");
    }
    has
}

fn unpack(archive: &Path, directory: &Path) {
    fs::create_dir_all(directory).unwrap();
    let output = bsdtar().arg("-xpf").arg(archive).arg("-C").arg(directory).output();
    let output = output.expect("bsdtar is needed: Debian's package is libarchive-tools");
    assert!(output.status.success(), "{}: {output:?}", archive.display());
}

/// What bsdtar's long listing has of an archive: mode, owner's and group's numbers, size and name, by name.
fn listing(archive: &Path) -> BTreeMap<String, (String, String, String, usize)> {
    let output = bsdtar().args(["--numeric-owner", "-tvf"]).arg(archive).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let name = fields.last().unwrap().trim_start_matches("./").trim_end_matches('/').to_owned();
            (name, (fields[0].into(), fields[2].into(), fields[3].into(), fields[4].parse().unwrap()))
        })
        .collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn a_xar_reader_finds_every_part() {
    if !has_bsdtar() {
        return;
    }
    let layout = Layout::new();
    let unpacked = layout.unpacked();
    // Eight entries: the top, four directories and three files; 100,008 bytes are 98 KiB.
    assert_eq!(read(&unpacked.join("Distribution")), "<plan kbytes=\"98\">#component.pkg</plan>");
    assert_eq!(read(&unpacked.join("component.pkg/PackageInfo")), "<info files=\"8\" kbytes=\"98\"/>");
    assert_eq!(read(&unpacked.join("Resources/a&b.txt")), "read me");
}

#[test]
fn a_cpio_reader_finds_files_modes_and_owners() {
    if !has_bsdtar() {
        return;
    }
    let layout = Layout::new();
    let component = layout.unpacked().join("component.pkg");
    for name in ["opt/ours/program", "opt/ours/share/doc/LICENSE", "opt/ours/share/empty"] {
        let original = layout.path("root").join(name);
        assert_eq!(fs::read(component.join("Payload.content").join(name)).unwrap(), fs::read(original).unwrap());
    }
    let listing = listing(&component.join("Payload"));
    let root = |mode: &str, size| (mode.to_owned(), "0".to_owned(), "0".to_owned(), size);
    assert_eq!(listing["opt/ours/program"], root("-rwxr-xr-x", 100_000));
    assert_eq!(listing["opt/ours/share/empty"], root("-rw-------", 0));
    assert_eq!(listing["opt/ours"], root("drwxr-xr-x", 0));
    assert_eq!(listing.len(), 8);
    assert_eq!(read(&component.join("Scripts.content/postinstall")), "#!/bin/sh\nexit 0\n");
}

#[test]
fn a_bom_reader_finds_what_is_in_the_payload() {
    if !has_bsdtar() {
        return;
    }
    let layout = Layout::new();
    let component = layout.unpacked().join("component.pkg");
    let bytes = fs::read(component.join("Bom")).unwrap();
    let bom = ParsedBom::parse(&bytes).unwrap();
    let paths = bom.paths().unwrap();
    let in_payload = listing(&component.join("Payload"));
    let names = |paths: &mut dyn Iterator<Item = &str>| -> Vec<String> {
        let mut names: Vec<String> = paths.map(|path| path.trim_start_matches("./").to_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&mut paths.iter().map(|path| path.path())), names(&mut in_payload.keys().map(String::as_str)));
    for path in &paths {
        let (mode, _, _, size) = &in_payload[path.path().trim_start_matches("./")];
        assert_eq!((path.size(), path.user_id(), path.group_id()), (*size, 0, 0), "{}", path.path());
        assert_eq!(&path.symbolic_mode(), mode, "{}", path.path());
        assert_eq!(path.modified_time().timestamp(), i64::from(DATE), "{}", path.path());
        if mode.starts_with('-') {
            let cksum = Command::new("cksum").arg(layout.path("root").join(path.path())).output().unwrap();
            let cksum = String::from_utf8(cksum.stdout).unwrap();
            assert_eq!(Some(path.crc32().unwrap().to_string().as_str()), cksum.split(' ').next(), "{}", path.path());
        }
    }
    // As Apple's own count it: one more than there are paths.
    assert_eq!(bom.bom_info().unwrap().number_of_paths as usize, paths.len() + 1);
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let (one, other) = (Layout::new(), Layout::new());
    assert!(one.make("ours.pkg").status.success() && other.make("ours.pkg").status.success());
    let bytes = |layout: &Layout| fs::read(layout.directory.path().join("ours.pkg")).unwrap();
    assert_eq!(bytes(&one), bytes(&other));
}

#[test]
fn a_link_is_refused_since_the_scripts_make_them() {
    let layout = Layout::new();
    symlink("program", layout.path("root/opt/ours/link")).unwrap();
    let refusal = layout.refusal();
    assert!(refusal.contains("opt/ours/link is neither a file nor a directory"), "{refusal}");
}

#[test]
fn a_package_without_its_script_is_refused() {
    let layout = Layout::new();
    fs::remove_file(layout.path("scripts/postinstall")).unwrap();
    assert!(layout.refusal().contains("postinstall"));
}

#[test]
fn more_files_than_a_page_of_the_bom_holds_are_refused() {
    let layout = Layout::new();
    for number in 0..510 {
        layout.write(&format!("root/many/{number}"), b"", 0o644);
    }
    assert!(layout.refusal().contains("more than 510 entries"));
}
