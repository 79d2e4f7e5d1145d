//! `flowtally compact`.

use crate::config::Compact;
use crate::store::{DataDir, Store, StoreOptions};

pub(super) fn run(arguments: &Compact) -> Result<(), String> {
    let dir = &arguments.data_dir.path;
    let compact = || {
        // Opening it for writing would create a directory that is absent.
        DataDir::open_to_read(dir)?;
        let (store, _) = Store::open(dir, StoreOptions::in_between())?;
        store.flush()?;
        store.compact()
    };
    compact().map_err(|e: crate::store::StoreError| e.to_string())
}
