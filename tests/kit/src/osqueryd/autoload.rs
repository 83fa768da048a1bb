//! The autoload file: which extensions osqueryd's watcher starts, and which it refuses.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

/// The paths in an autoload file that osqueryd would start.
pub(super) fn autoloaded(file: &Path, allow_unsafe: bool, warn: &dyn Fn(String)) -> Vec<PathBuf> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let mut paths = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') || line.starts_with(';') {
            continue;
        }
        let path = PathBuf::from(line);
        let listed = match path.is_dir() {
            true => fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()).collect(),
            false => vec![path],
        };
        for path in listed {
            match refusal(&path, allow_unsafe) {
                None => paths.push(path),
                Some(refusal) => warn(refusal),
            }
        }
    }
    paths.sort();
    paths.dedup();
    paths
}

/// osqueryd's warning about a path that it does not start.
fn refusal(path: &Path, allow_unsafe: bool) -> Option<String> {
    let shown = path.display();
    let Ok(found) = fs::metadata(path) else {
        return Some(format!("extension doesn't exist at: {shown}"));
    };
    let parent = path.parent().and_then(|parent| fs::metadata(parent).ok());
    let sticky = parent.is_none_or(|parent| parent.mode() & 0o1000 != 0);
    let owned = found.uid() == 0 || found.uid() == geteuid().as_raw();
    let safe = !sticky && owned && found.mode() & 0o002 == 0 && found.mode() & 0o111 != 0;
    if !safe && !allow_unsafe {
        return Some(format!("Will not autoload extension with unsafe directory permissions: {shown}"));
    }
    let ends = path.extension().is_some_and(|extension| extension == "ext");
    (!ends).then(|| format!("Will not autoload extension not ending in one of '.ext': {shown}"))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::{autoloaded, refusal};

    #[test]
    fn the_autoload_file_has_comments_and_directories() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("inner");
        fs::create_dir(&inner).unwrap();
        for name in ["a.ext", "inner/b.ext", "inner/c.txt"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let file = dir.path().join("extensions.load");
        let at = dir.path().display();
        fs::write(&file, format!("# x\n; y\n\n {at}/a.ext \n{at}/inner\n{at}/missing.ext\n")).unwrap();
        let warned = std::cell::RefCell::new(Vec::new());
        let paths = autoloaded(&file, true, &|warning| warned.borrow_mut().push(warning));
        assert_eq!(paths, [dir.path().join("a.ext"), inner.join("b.ext")]);
        assert_eq!(warned.borrow().len(), 2, "{warned:?}");
    }

    #[test]
    fn permissions_matter_unless_unsafe_is_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.ext");
        fs::write(&path, "").unwrap();
        let refused = |mode: u32| {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            refusal(&path, false).is_some()
        };
        assert!(!refused(0o755) && refused(0o757) && refused(0o644));
        assert_eq!(refusal(&path, true), None);
        fs::set_permissions(dir.path(), Permissions::from_mode(0o1777)).unwrap();
        assert!(refused(0o755));
    }
}
