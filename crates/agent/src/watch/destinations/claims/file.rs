//! The claims as a file, so that an agent that was restarted repeats them, and goes on with those that it can prove.
//!
//! ```text
//! 00000000000000123456           the last look, in 20 digits: overwritten at each
//! {"version":1,"boot_id":…}      everything else: written again when it has changed
//! ```
//!
//! The file is not synced. It is about this run of the system only, so nothing in it would be of use after a power failure;
//! what cannot be read then is ignored. It needs not to be in step with the spool: a claim about the past stays true.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::super::addresses::Held;
use super::super::super::clock::Span;
use super::{Claims, LastLook, Listener, OwnClaim};
use crate::command::eprint_line;

const VERSION: u32 = 1;
/// Digits, and the end of the line.
const HEADER_BYTES: usize = 21;

/// The file.
#[derive(Debug)]
pub(in crate::watch) struct ClaimsFile {
    path: PathBuf,
    boot_id: String,
    vpc_id: String,
    /// `None` if it was not written yet, or could not be.
    file: Option<File>,
    is_error_printed: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    version: u32,
    /// The system's start. All times in the file are since then.
    boot_id: String,
    /// Addresses of different VPCs may be equal.
    vpc_id: String,
    namespaces: Vec<SavedNamespace>,
    closed: Vec<OwnClaim>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedNamespace {
    id: u64,
    held: Vec<(IpAddr, Held)>,
    listeners: Vec<Listener>,
    /// Each of these lasted until the last look.
    open: Vec<OwnClaim>,
}

impl ClaimsFile {
    /// Reads the claims of the agent that used this directory last: none if that was before the system was restarted, or
    /// in another VPC.
    pub(in crate::watch) fn open(dir: &Path, boot_id: &str, vpc_id: &str) -> (ClaimsFile, Claims) {
        let file = ClaimsFile {
            path: dir.join("claims"),
            boot_id: boot_id.to_owned(),
            vpc_id: vpc_id.to_owned(),
            file: None,
            is_error_printed: false,
        };
        let claims = file.read().unwrap_or_default();
        (file, claims)
    }

    fn read(&self) -> Option<Claims> {
        let bytes = fs::read(&self.path).ok()?;
        let (header, content) = bytes.split_at_checked(HEADER_BYTES)?;
        let until: u64 = std::str::from_utf8(header).ok()?.trim_end().parse().ok()?;
        let content: Content = serde_json::from_slice(content).ok()?;
        let is_of_use = content.version == VERSION
            && content.boot_id == self.boot_id
            && content.vpc_id == self.vpc_id;
        is_of_use.then(|| content.into_claims(until))
    }

    /// Saves the claims, if that is possible. Without the file, an agent that is restarted begins with none.
    pub(in crate::watch) fn save(&mut self, claims: &mut Claims) {
        let until = claims.complete_until().unwrap_or(0);
        let saved = match self.file.as_ref().filter(|_| !claims.is_unsaved) {
            Some(file) => file.write_all_at(header(until).as_bytes(), 0),
            None => self.write(until, claims),
        };
        match saved {
            Ok(()) => {
                claims.is_unsaved = false;
                self.is_error_printed = false;
            }
            Err(error) => {
                self.file = None;
                // What is in it may not hold any more.
                let _best_effort = fs::remove_file(&self.path);
                if !self.is_error_printed {
                    eprint_line(&format!(
                        "flowtally: {}: {error}; after a restart of this agent, others have no name for this host for some \
                         seconds",
                        self.path.display()
                    ));
                    self.is_error_printed = true;
                }
            }
        }
    }

    fn write(&mut self, until: u64, claims: &Claims) -> io::Result<()> {
        let mut bytes = header(until).into_bytes();
        serde_json::to_writer(&mut bytes, &self.content(claims))?;
        let unfinished = self.path.with_extension("tmp");
        let mut file = File::create(&unfinished)?;
        file.write_all(&bytes)?;
        fs::rename(&unfinished, &self.path)?;
        self.file = Some(file);
        Ok(())
    }

    fn content(&self, claims: &Claims) -> Content {
        let namespaces = claims.looks.iter().map(|(id, look)| {
            let open = claims.open.get(id).into_iter();
            let held = look.held.iter();
            SavedNamespace {
                id: *id,
                held: held.map(|(address, held)| (*address, *held)).collect(),
                listeners: look.listeners.clone(),
                open: open.flat_map(|open| open.values().cloned()).collect(),
            }
        });
        Content {
            version: VERSION,
            boot_id: self.boot_id.clone(),
            vpc_id: self.vpc_id.clone(),
            namespaces: namespaces.collect(),
            closed: claims.closed.clone(),
        }
    }
}

impl Content {
    fn into_claims(self, until: u64) -> Claims {
        let mut claims = Claims {
            closed: self.closed,
            ..Claims::default()
        };
        for namespace in self.namespaces {
            let open = namespace.open.into_iter().map(|claim| {
                let to = claim.to.max(until);
                (claim.endpoint, OwnClaim { to, ..claim })
            });
            claims.open.insert(namespace.id, open.collect());
            let last = LastLook {
                at: Span {
                    from: until,
                    to: until,
                },
                held: namespace.held.into_iter().collect(),
                listeners: namespace.listeners,
                is_before_restart: true,
            };
            claims.looks.insert(namespace.id, last);
        }
        claims
    }
}

fn header(until: u64) -> String {
    format!("{until:020}\n")
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn claims() -> Claims {
        let endpoint: SocketAddr = "10.0.0.7:80".parse().unwrap();
        let claim = |from, to| OwnClaim {
            app: "web".into(),
            endpoint,
            from,
            to,
        };
        let look = LastLook {
            at: Span { from: 90, to: 91 },
            held: [(
                endpoint.ip(),
                Held {
                    since: 5,
                    stamp: None,
                },
            )]
            .into(),
            listeners: Vec::new(),
            is_before_restart: false,
        };
        Claims {
            open: [(1, [(endpoint, claim(50, 90))].into())].into(),
            closed: vec![claim(10, 20)],
            looks: [(1, look)].into(),
            has_changed: false,
            is_unsaved: true,
        }
    }

    fn times(claims: &Claims) -> Vec<(u64, u64)> {
        let mut times: Vec<_> = claims.all().map(|claim| (claim.from, claim.to)).collect();
        times.sort_unstable();
        times
    }

    #[test]
    fn an_agent_that_is_restarted_has_its_claims() {
        let dir = tempfile::tempdir().unwrap();
        let (mut file, restored) = ClaimsFile::open(dir.path(), "boot", "vpc");
        assert_eq!(times(&restored), []);
        let mut claims = claims();
        file.save(&mut claims);
        assert!(!claims.is_unsaved);
        let restored = || ClaimsFile::open(dir.path(), "boot", "vpc").1;
        assert_eq!(times(&restored()), [(10, 20), (50, 90)]);
        assert_eq!(
            restored().known_addresses(),
            [(1, claims.looks[&1].held.clone())].into()
        );
        // The next look has found the same: only the time is written.
        claims.looks.get_mut(&1).unwrap().at.from = 130;
        let inode = || fs::metadata(dir.path().join("claims")).unwrap().ino();
        let before = inode();
        file.save(&mut claims);
        assert_eq!(times(&restored()), [(10, 20), (50, 130)]);
        assert_eq!(inode(), before);
        // A claim has ended.
        claims.open.clear();
        claims.is_unsaved = true;
        file.save(&mut claims);
        assert_eq!(times(&restored()), [(10, 20)]);
        for (boot_id, vpc_id) in [("other boot", "vpc"), ("boot", "other VPC")] {
            let (_, restored) = ClaimsFile::open(dir.path(), boot_id, vpc_id);
            assert_eq!(times(&restored), []);
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let (mut file, _) = ClaimsFile::open(dir.path(), "boot", "vpc");
        file.save(&mut claims());
        let path = dir.path().join("claims");
        let whole = fs::read(&path).unwrap();
        for length in [0, 5, HEADER_BYTES, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            let (_, restored) = ClaimsFile::open(dir.path(), "boot", "vpc");
            assert_eq!(times(&restored), [], "{length} bytes");
        }
    }

    /// It must not be there later, when its claims do not hold any more.
    #[test]
    fn a_file_that_cannot_be_written_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (mut file, _) = ClaimsFile::open(dir.path(), "boot", "vpc");
        let mut claims = claims();
        file.save(&mut claims);
        fs::create_dir(dir.path().join("claims.tmp")).unwrap();
        claims.is_unsaved = true;
        file.save(&mut claims);
        assert!(claims.is_unsaved && !dir.path().join("claims").exists());
        fs::remove_dir(dir.path().join("claims.tmp")).unwrap();
        file.save(&mut claims);
        assert!(!claims.is_unsaved && dir.path().join("claims").exists());
    }
}
