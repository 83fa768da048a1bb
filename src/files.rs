//! Files and directories that others may have had their hands on: nothing is waited for, read without a bound, or
//! followed to where another user has put it.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::OFlags;

use crate::platform::ADMINISTRATORS;

/// Symbolic links on the way to a directory, at most.
const MOST_LINKS: usize = 40;

/// The path with `suffix` behind its last name.
#[must_use]
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// What tells one file from any other of this host, whatever its name: device and inode.
#[must_use]
pub fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

/// How a file looks: something of this differs for a file that was replaced or rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileLook {
    identity: (u64, u64),
    size: u64,
    /// Seconds and nanoseconds of the last change.
    changed: (i64, i64),
}

impl FileLook {
    /// How the file that has this name looks, through links; `None` when it can't be looked at.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let file = fs::metadata(path).ok()?;
        Some(Self { identity: identity(&file), size: file.size(), changed: (file.mtime(), file.mtime_nsec()) })
    }
}

/// Reads a file that an operator has named, of at most `most` bytes.
///
/// # Errors
/// It is no regular file, has more bytes, or can't be read.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    read_all(open(path, OpenOptions::new().read(true), OFlags::empty())?, most)
}

/// Reads a file that holds secrets of an operator's: of our user, who alone may read it, and no other one can put another
/// in its place.
///
/// # Errors
/// It isn't, it is no regular file, has more than `most` bytes, or can't be read.
pub fn read_private(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let file = open(path, OpenOptions::new().read(true), OFlags::empty())?;
    let found = file.metadata()?;
    let refused = |reason: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
    if !path.is_absolute() {
        return refused("its path does not begin with /".to_owned());
    }
    if found.mode() & 0o077 != 0 {
        let mode = found.mode() & 0o7777;
        return refused(format!("others can read or change it (mode {mode:04o}): chmod 0600 {}", path.display()));
    }
    if let Some(reason) = distrust(path) {
        return refused(format!("not to be trusted: {reason}"));
    }
    read_all(file, most)
}

/// Reads a text file that we have made: no other user's, and not through a link.
///
/// # Errors
/// The file is another user's or a link, has more than `most` bytes, or can't be read.
pub fn read_ours(path: &Path, most: u64) -> io::Result<String> {
    let file = open_ours(path, OpenOptions::new().read(true))?;
    String::from_utf8(read_all(file, most)?).map_err(|_| io::Error::other("it is no UTF-8"))
}

/// Opens a file that is ours alone, or makes it with mode 0600: no link is followed, no other name leads to it, and it
/// is of our user.
///
/// # Errors
/// The file is another user's or a link, or can't be opened.
pub fn open_ours(path: &Path, options: &OpenOptions) -> io::Result<File> {
    let file = open_unfollowed(path, options)?;
    let found = file.metadata()?;
    if found.uid() != our_user() {
        return Err(io::Error::other(format!("it is the user {}'s, and not ours", found.uid())));
    }
    if found.nlink() > 1 {
        return Err(io::Error::other("it has another name, too (a hard link)"));
    }
    Ok(file)
}

/// Opens a regular file, or makes it with mode 0600, through no link. Whose it is isn't looked at: for directories that
/// are [trusted](trust_in).
///
/// # Errors
/// It is a link or no regular file, or can't be opened.
pub fn open_unfollowed(path: &Path, options: &OpenOptions) -> io::Result<File> {
    open(path, options, OFlags::NOFOLLOW)
}

/// Writes a file of ours, all or nothing: as `PATH.new` first, which is then renamed. `finish` is what is done to it before that.
///
/// # Errors
/// It can't be written or renamed; the file is as it was then.
pub fn replace(path: &Path, bytes: &[u8], finish: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    let aside = with_suffix(path, ".new");
    // A new one: what was left there, or put there, is not written into.
    remove(&aside)?;
    let mut file = open_ours(&aside, OpenOptions::new().create_new(true).write(true))?;
    file.write_all(bytes)?;
    finish(&file)?;
    fs::rename(aside, path)
}

/// Makes a directory that only our user may use (mode 0700), and those above it, unless it is there.
///
/// # Errors
/// It can't be made, or another user could change what is in it.
pub fn make_directory(directory: &Path) -> io::Result<()> {
    trust_in(directory)?;
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    trust_in(directory)
}

/// Removes a file, if it is there.
///
/// # Errors
/// It is there and can't be removed.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A pipe without a writer must be an error, and not a wait.
fn open(path: &Path, options: &OpenOptions, flags: OFlags) -> io::Result<File> {
    let flags = i32::try_from((flags | OFlags::NONBLOCK).bits()).unwrap_or_default();
    let file = options.clone().mode(0o600).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no regular file")) }
}

fn read_all(file: File, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("it has more than {most} bytes")));
    }
    Ok(bytes)
}

/// Refuses a directory that is not to be trusted: see [`distrust`].
///
/// # Errors
/// `PermissionDenied`, with the reason.
pub fn trust_in(directory: &Path) -> io::Result<()> {
    match distrust(directory) {
        Some(reason) => Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("not to be trusted: {reason}"))),
        None => Ok(()),
    }
}

/// Why a directory is not to be trusted with what only we may write: another user could change what is in it, or put
/// another one in its place. `None` when it can be trusted, and when it isn't there and the one above it can.
///
/// The directory itself must be ours, and writable for us alone; those above it must be ours or root's, and others may not
/// write them, root's group and ours apart, unless only owners can rename there (the sticky bit). A link counts as the
/// directory that it stands in: who may write that decides where it leads.
#[must_use]
pub fn distrust(directory: &Path) -> Option<String> {
    distrust_as(directory, itself)
}

/// [`distrust`], with `itself` to judge the directory itself.
fn distrust_as(directory: &Path, itself: fn(&Path, &Metadata) -> Option<String>) -> Option<String> {
    let mut links = 0;
    let mut waiting: Vec<PathBuf> = parts(directory);
    let mut at = PathBuf::from("/");
    let mut last = above(&at);
    while let Some(part) = waiting.pop() {
        if let Some(reason) = last {
            return Some(reason);
        }
        let next = at.join(&part);
        let found = match fs::symlink_metadata(&next) {
            Ok(found) => found,
            // It is still to be made, by us.
            Err(_) => return None,
        };
        last = None;
        if found.is_symlink() {
            links += 1;
            let Ok(target) = fs::read_link(&next).map(|target| at.join(target)) else { return None };
            if links > MOST_LINKS || !is_trusted(found.uid()) {
                return Some(format!("{} is a link of the user {}", next.display(), found.uid()));
            }
            waiting.extend(parts(&target));
            at = PathBuf::from("/");
        } else if waiting.is_empty() {
            last = itself(&next, &found);
            at = next;
        } else {
            at = next;
            last = above(&at);
        }
    }
    last
}

/// The names on the way from the root, the last first. `..` is taken as it is written: the path is resolved on the way.
fn parts(path: &Path) -> Vec<PathBuf> {
    let names = path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    let mut names: Vec<PathBuf> = names.map(|part| PathBuf::from(part.as_os_str())).collect();
    names.reverse();
    names
}

fn itself(path: &Path, found: &Metadata) -> Option<String> {
    if found.uid() != our_user() {
        return Some(anothers(path, found));
    }
    (found.mode() & 0o022 != 0).then(|| writable(path, found))
}

fn anothers(path: &Path, found: &Metadata) -> String {
    format!("{} is the user {}'s", path.display(), found.uid())
}

fn writable(path: &Path, found: &Metadata) -> String {
    format!("others may write in {} (mode {:04o})", path.display(), found.mode() & 0o7777)
}

fn above(path: &Path) -> Option<String> {
    let found = fs::metadata(path).ok()?;
    if !is_trusted(found.uid()) {
        return Some(anothers(path, &found));
    }
    let is_sticky = found.mode() & 0o1000 != 0;
    (may_others_write(&found) && !is_sticky).then(|| writable(path, &found))
}

/// Whether users other than root and ours may write there. Our own group's users count as ours.
fn may_others_write(found: &Metadata) -> bool {
    let is_our_group = ADMINISTRATORS.contains(&found.gid()) || found.gid() == rustix::process::getegid().as_raw();
    found.mode() & 0o002 != 0 || (found.mode() & 0o020 != 0 && !is_our_group)
}

fn is_trusted(user: u32) -> bool {
    user == 0 || user == our_user()
}

/// The user that this process runs as.
#[must_use]
pub fn our_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Opens a program that may be run as us, as osqueryd judges extensions: whose it is, who may write it, and who may put
/// another one in its place. What was opened is what was judged.
///
/// # Errors
/// Why it may not.
pub fn open_program(path: &Path) -> Result<File, String> {
    let program = open_unfollowed(path, OpenOptions::new().read(true)).map_err(|error| error.to_string())?;
    let found = program.metadata().map_err(|error| error.to_string())?;
    if !is_trusted(found.uid()) {
        return Err(format!("it is the user {}'s", found.uid()));
    }
    if found.mode() & 0o022 != 0 {
        return Err(format!("others may write it (mode {:04o})", found.mode() & 0o7777));
    }
    let directory = path.parent().unwrap_or(Path::new("/"));
    distrust_as(directory, beside).map_or(Ok(program), Err)
}

/// The directory of a program: unlike in one of ours, an administrator's group may write there.
fn beside(path: &Path, found: &Metadata) -> Option<String> {
    if !is_trusted(found.uid()) {
        return Some(anothers(path, found));
    }
    may_others_write(found).then(|| writable(path, found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::process::Command;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn only_regular_files_of_a_bounded_size_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("a"), "12345").unwrap();
        assert_eq!(read(&path("a"), 5).unwrap(), b"12345");
        assert!(read(&path("a"), 4).unwrap_err().to_string().contains("more than 4 bytes"));
        assert!(Command::new("mkfifo").arg(path("pipe")).status().unwrap().success());
        for other in [path("pipe"), directory.path().to_owned(), "/dev/zero".into()] {
            assert!(read(&other, 5).unwrap_err().to_string().contains("no regular file"), "{}", other.display());
        }
    }

    #[test]
    fn a_file_that_another_name_leads_to_is_none_of_ours() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let append = || OpenOptions::new().append(true).create(true).clone();
        assert!(open_ours(&path("new"), &append()).is_ok());
        assert_eq!(fs::metadata(path("new")).unwrap().mode() & 0o777, 0o600);
        symlink(path("new"), path("link")).unwrap();
        assert!(open_ours(&path("link"), &append()).is_err());
        fs::hard_link(path("new"), path("hard")).unwrap();
        assert!(open_ours(&path("hard"), &append()).unwrap_err().to_string().contains("hard link"));
    }

    #[test]
    fn a_directory_that_others_can_change_is_not_trusted() {
        let directory = tempfile::tempdir().unwrap();
        let (outer, inner) = (directory.path().join("outer"), directory.path().join("outer/inner"));
        fs::create_dir_all(&inner).unwrap();
        for (outer_mode, inner_mode, trusted) in [
            (0o755, 0o700, true),
            (0o755, 0o755, true),
            (0o755, 0o775, false),
            (0o755, 0o777, false),
            (0o755, 0o1777, false),
            (0o775, 0o700, true),
            (0o777, 0o700, false),
            (0o1777, 0o700, true),
        ] {
            mode(&outer, outer_mode);
            mode(&inner, inner_mode);
            let reason = distrust(&inner);
            assert_eq!(reason.is_none(), trusted, "{outer_mode:o} {inner_mode:o}: {reason:?}");
        }
        // Another group's users could put another directory in its place. Only root can give one away.
        if std::os::unix::fs::chown(&outer, None, Some(12345)).is_ok() {
            mode(&outer, 0o775);
            assert!(distrust(&inner).is_some());
            mode(&outer, 0o1775);
            assert_eq!(distrust(&inner), None);
        }
        mode(&outer, 0o777);
        assert!(distrust(&outer.join("missing")).is_some());
        let link = directory.path().join("link");
        symlink(&inner, &link).unwrap();
        assert!(distrust(&link).is_some(), "it leads through a directory that every user may write");
        mode(&outer, 0o755);
        assert_eq!((distrust(&link), distrust(&outer.join("missing"))), (None, None));
    }

    #[test]
    fn a_program_that_others_can_change_is_not_run() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("p");
        fs::write(&program, "").unwrap();
        mode(&program, 0o755);
        assert!(open_program(&program).is_ok());
        mode(&program, 0o775);
        assert!(open_program(&program).is_err());
        mode(&program, 0o755);
        for mode_of_the_directory in [0o777, 0o1777] {
            mode(directory.path(), mode_of_the_directory);
            assert!(open_program(&program).unwrap_err().contains("others may write in"));
        }
        mode(directory.path(), 0o700);
        let link = directory.path().join("l");
        symlink(&program, &link).unwrap();
        assert!(open_program(&link).is_err() && open_program(&directory.path().join("none")).is_err());
    }
}
