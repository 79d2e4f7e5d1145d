//! The commands `completions` and `man` of a program: both are derived from the definition of its command line.

use clap::Command;

use super::write_stdout;
use crate::arguments::{Completions, Man};

/// Prints the completions for a shell.
pub fn completions(mut program: Command, arguments: &Completions) -> Result<(), String> {
    let name = program.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut program, name, &mut script);
    write_stdout(&script)
}

/// Prints the manual page of the program, or writes one for each of its commands.
pub fn pages(program: Command, arguments: &Man) -> Result<(), String> {
    let Some(dir) = &arguments.out else {
        let mut page = Vec::new();
        let rendered = clap_mangen::Man::new(program).render(&mut page);
        return rendered
            .map_err(|e| e.to_string())
            .and_then(|()| write_stdout(&page));
    };
    std::fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(program, dir))
        .map_err(|e| format!("{}: {e}", dir.display()))
}
