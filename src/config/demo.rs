//! Arguments of `flowtally demo`.

use clap::Args;

/// Arguments of `flowtally demo`.
#[derive(Clone, Debug, Args)]
pub struct Demo {
    /// Days of flows before now.
    #[arg(
        long,
        value_name = "DAYS",
        default_value = "30",
        value_parser = clap::value_parser!(u32).range(1..=365)
    )]
    pub days: u32,

    /// Port of 127.0.0.1 to listen on; by default a free one.
    #[arg(
        long,
        value_name = "PORT",
        default_value = "0",
        hide_default_value = true
    )]
    pub port: u16,

    /// Do not open the page in a browser. Without a desktop (neither DISPLAY nor WAYLAND_DISPLAY is set), it is not
    /// opened either.
    #[arg(long)]
    pub no_browser: bool,
}
