//! Files and directories that outlive a power cut: each of these functions returns when what it made is
//! on the disk, its name included.
//!
//! A file's name is in its directory, so a new name is on the disk once the *directory* has been synced,
//! whatever was done to the file.

use std::fs::{self, DirEntry, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// The errors of a file system that has no such operation: FAT, FUSE and SMB refuse links, and some
/// cannot sync a directory.
pub fn is_unsupported(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    errno.is_some_and(|errno| {
        [
            Errno::PERM,
            Errno::INVAL,
            Errno::NOTSUP,
            Errno::OPNOTSUPP,
            Errno::NOSYS,
            Errno::XDEV,
            Errno::MLINK,
        ]
        .contains(&errno)
    })
}

/// What there was not enough of for a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    Space,
    Quota,
    /// The file may not get larger.
    FileSize,
}

impl Lack {
    const ALL: [(Lack, Errno); 3] = [
        (Lack::Space, Errno::NOSPC),
        (Lack::Quota, Errno::DQUOT),
        (Lack::FileSize, Errno::FBIG),
    ];

    pub fn of(error: &io::Error) -> Option<Lack> {
        let errno = Errno::from_raw_os_error(error.raw_os_error()?);
        let lack = Lack::ALL.into_iter().find(|(_, of)| *of == errno);
        lack.map(|(lack, _)| lack)
    }

    /// The same from the text of an error, for RocksDB's: of the number it keeps only what the system calls it.
    pub fn in_text(text: &str) -> Option<Lack> {
        let is_in = |errno: Errno| {
            let with_number = io::Error::from(errno).to_string();
            let name = with_number.split(" (os error").next();
            name.is_some_and(|name| text.contains(name))
        };
        let lack = Lack::ALL.into_iter().find(|(_, of)| is_in(*of));
        lack.map(|(lack, _)| lack)
    }

    /// What to do about it.
    pub fn remedy(self) -> &'static str {
        match self {
            Lack::Space => "the disk is full: make room on it",
            Lack::Quota => "the quota of this user on the disk is used up: raise it, or make room",
            Lack::FileSize => {
                "a file would get larger than this process may make it: raise the limit (ulimit -f, and \
                 LimitFSIZE= of a systemd unit)"
            }
        }
    }
}

/// Syncs a directory: the names in it are on the disk.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    match File::open(dir)?.sync_all() {
        Err(error) if is_unsupported(&error) => Ok(()),
        synced => synced,
    }
}

/// Syncs the directory that `path`, which exists, is in: its own name is on the disk.
pub fn sync_name(path: &Path) -> io::Result<()> {
    // A symlink's target is what has to be there, so it is the target's name that is synced.
    let real = path.canonicalize()?;
    match real.parent().map_or(Ok(()), sync_dir) {
        // A directory above ours that this user may not read, and so has not written to.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        synced => synced,
    }
}

/// Makes a directory and the missing ones above it. A directory is only made in one whose name is
/// synced; so after a kill at any point, the next call syncs all that is not.
pub fn create_dir_all(path: &Path) -> io::Result<()> {
    let mut missing: Vec<PathBuf> = Vec::new();
    let mut there = std::path::absolute(path)?;
    while !there.is_dir() {
        let Some(parent) = there.parent().map(Path::to_owned) else {
            break;
        };
        missing.push(std::mem::replace(&mut there, parent));
    }
    sync_name(&there)?;
    for dir in missing.into_iter().rev() {
        match fs::create_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
            made => made?,
        }
        sync_name(&dir)?;
    }
    Ok(())
}

/// Writes a file as a whole: under the name `unfinished`, and then renamed to `path`, in the same
/// directory. A crash leaves the file that was there, or the new one.
pub fn write(path: &Path, unfinished: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::create(unfinished)?;
    file.write_all(content)?;
    file.sync_all()?;
    rename(unfinished, path)
}

/// Renames what is synced already, inside of one directory.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_name(to)
}

/// Whether files of the directory `dir` can have a second name. Where they cannot, they are copied.
pub fn has_links(dir: &Path) -> io::Result<bool> {
    let file = tempfile::NamedTempFile::new_in(dir)?;
    let mut second = file.path().as_os_str().to_owned();
    second.push(".link");
    match fs::hard_link(file.path(), &second) {
        Ok(()) => fs::remove_file(&second).map(|()| true),
        Err(error) if is_unsupported(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether it is the `lost+found` that a fresh ext file system has in its top directory: such a directory
/// is empty, for all that anybody has put there.
pub fn is_lost_and_found(entry: &DirEntry) -> bool {
    entry.file_name() == "lost+found" && entry.file_type().is_ok_and(|kind| kind.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_full_disks_are_classified_by_number_and_by_name() {
        for (lack, errno) in Lack::ALL {
            let error = io::Error::from(errno);
            assert_eq!(Lack::of(&error), Some(lack));
            // As RocksDB has it, and as the standard library does.
            let name = error.to_string();
            let name = name.split(" (os").next().unwrap();
            let text = format!("IO error: While appending to file: rocks/000004.log: {name}");
            assert_eq!(Lack::in_text(&text), Some(lack));
            assert_eq!(Lack::in_text(&error.to_string()), Some(lack));
        }
        assert_eq!(Lack::of(&Errno::IO.into()), None);
        assert_eq!(Lack::in_text(&io::Error::from(Errno::IO).to_string()), None);
    }

    #[test]
    fn directories_are_made_wherever_some_are_missing() {
        let temp = tempfile::tempdir().unwrap();
        let deep = temp.path().join("a/b/c");
        create_dir_all(&deep).unwrap();
        create_dir_all(&deep).unwrap();
        assert!(deep.is_dir());
        std::os::unix::fs::symlink(&deep, temp.path().join("link")).unwrap();
        create_dir_all(&temp.path().join("link/d")).unwrap();
        assert!(deep.join("d").is_dir());
        fs::write(temp.path().join("file"), "").unwrap();
        assert!(create_dir_all(&temp.path().join("file")).is_err());
        assert!(create_dir_all(&temp.path().join("file/d")).is_err());
    }

    #[test]
    fn a_file_is_written_as_a_whole() {
        let temp = tempfile::tempdir().unwrap();
        let (path, unfinished) = (temp.path().join("file"), temp.path().join("tmp"));
        for content in ["one", "two"] {
            write(&path, &unfinished, content.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        assert!(!unfinished.exists() && has_links(temp.path()).unwrap());
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
    }
}
