//! Stands for `cluster` in a service without the feature `kafka`, which has no arguments of nodes.

use std::path::PathBuf;

use clap::Args;

use super::Serve;
use crate::service::cluster::NodeConfig;

/// No arguments.
#[derive(Clone, Debug, Args)]
pub struct Cluster {}

impl Cluster {
    pub(super) fn node(&self, _: &Serve) -> Result<Option<NodeConfig>, String> {
        Ok(None)
    }

    pub(super) fn token_file(&self) -> Option<PathBuf> {
        None
    }
}
