//! `flowtally completions` and `flowtally man`: both are derived from the command line's definition.

use clap::CommandFactory;

use crate::config::{Cli, Completions, Man};

pub(super) fn completions(arguments: &Completions) -> Result<(), String> {
    let mut script = Vec::new();
    clap_complete::generate(
        arguments.shell,
        &mut Cli::command(),
        "flowtally",
        &mut script,
    );
    agent::command::write_stdout(&script)
}

pub(super) fn pages(arguments: &Man) -> Result<(), String> {
    let command = Cli::command();
    let Some(dir) = &arguments.out else {
        let mut page = Vec::new();
        let rendered = clap_mangen::Man::new(command).render(&mut page);
        return rendered
            .map_err(|e| e.to_string())
            .and_then(|()| agent::command::write_stdout(&page));
    };
    std::fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(command, dir))
        .map_err(|e| format!("{}: {e}", dir.display()))
}
