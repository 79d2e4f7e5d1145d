//! The names of the other ends (`dest_app`): from the table of `--apps`, which is read again when it changes.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use crate::arguments::Unattributed;
use crate::inputs::Apps;

/// The table of names.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    apps: Arc<Apps>,
    file: Option<PathBuf>,
    /// The file's length and time of change when it was read; `None` if it was missing.
    version: Option<(u64, SystemTime)>,
    /// It was read, or tried to.
    is_read: bool,
    unattributed: Unattributed,
    unknown: Arc<str>,
}

impl Names {
    pub(crate) fn open(file: Option<&Path>, unattributed: Unattributed) -> Result<Names, String> {
        let mut names = Names {
            apps: Arc::default(),
            file: file.map(Path::to_owned),
            version: None,
            is_read: false,
            unattributed,
            unknown: "unknown".into(),
        };
        names.reload()?;
        Ok(names)
    }

    /// Reads the table again if it has changed. Returns whether it has.
    ///
    /// # Errors
    /// If it cannot be read; the table before stays. Only once for each change.
    pub(crate) fn reload(&mut self) -> Result<bool, String> {
        let Some(path) = &self.file else {
            return Ok(false);
        };
        let wrong = |error: &dyn std::fmt::Display| format!("--apps {}: {error}", path.display());
        let version = fs::metadata(path).and_then(|meta| Ok((meta.len(), meta.modified()?)));
        let (version, missing) = match version {
            Ok(version) => (Some(version), None),
            Err(error) => (None, Some(error)),
        };
        if self.version == version && self.is_read {
            return Ok(false);
        }
        self.version = version;
        self.is_read = true;
        if let Some(error) = missing {
            return Err(wrong(&error));
        }
        let file = fs::File::open(path).map_err(|error| wrong(&error))?;
        self.apps = Arc::new(Apps::read(file).map_err(|error| wrong(&error))?);
        Ok(true)
    }

    pub(crate) fn of(&self, remote: SocketAddr) -> Arc<str> {
        self.of_any(remote).0
    }

    /// The name, and whether the table has one.
    pub(crate) fn of_any(&self, remote: SocketAddr) -> (Arc<str>, bool) {
        match (self.apps.of_endpoint(remote), self.unattributed) {
            (Some(name), _) => (name.into(), true),
            (None, Unattributed::Address) => (remote.ip().to_string().into(), false),
            (None, Unattributed::Unknown) => (self.unknown.clone(), false),
        }
    }

    /// The name that the table has for this endpoint, or for exactly this address.
    pub(crate) fn of_one(&self, remote: SocketAddr) -> Option<Arc<str>> {
        self.apps.of_one(remote).map(Arc::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_again_when_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("apps.csv");
        let remote: SocketAddr = "10.0.0.7:5432".parse().unwrap();
        fs::write(&file, "address,app\n10.0.0.0/8,internal\n").unwrap();
        let mut names = Names::open(Some(&file), Unattributed::Unknown).unwrap();
        assert_eq!(&*names.of(remote), "internal");
        fs::write(
            &file,
            "address,app\n10.0.0.0/8,internal\n10.0.0.7:5432,db\n",
        )
        .unwrap();
        names.reload().unwrap();
        assert_eq!(&*names.of(remote), "db");
        // Something invalid is reported once, and does not take effect.
        fs::write(&file, "address,app\n10.0.0.0/80,x\n").unwrap();
        let error = names.reload().unwrap_err();
        assert!(error.contains("line 2"), "{error}");
        names.reload().unwrap();
        assert_eq!(&*names.of(remote), "db");
        assert_eq!(&*names.of("9.9.9.9:53".parse().unwrap()), "unknown");
    }

    #[test]
    fn without_a_name_an_address_is_its_name() {
        let names = Names::open(None, Unattributed::Address).unwrap();
        assert_eq!(&*names.of("[fd00::7]:443".parse().unwrap()), "fd00::7");
    }
}
