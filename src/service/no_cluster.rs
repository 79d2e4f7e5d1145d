//! Stands for `cluster` in a service without the feature `kafka`. Its types have no values.

use super::{Open, ServiceOptions};

#[derive(Clone, Debug)]
pub enum NodeConfig {}

impl NodeConfig {
    pub fn stores_max(&self) -> usize {
        match *self {}
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ClusterError {}

pub fn prepare(config: NodeConfig, _: ServiceOptions) -> Open {
    match config {}
}
