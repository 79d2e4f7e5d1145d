//! The commands `completions` and `man` of a program: both are derived from the definition of its command line.

use std::fs;
use std::io;
use std::path::Path;

use clap::Command;

use super::write_stdout;
use crate::arguments::{Completions, Man};
use crate::examples::HEADING;

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
        let page = render(&clap_mangen::Man::new(program)).map_err(|e| e.to_string())?;
        return write_stdout(page.as_bytes());
    };
    // As `clap_mangen::generate_to`, which renders the pages itself.
    let mut program = program.disable_help_subcommand(true);
    program.build();
    fs::create_dir_all(dir)
        .and_then(|()| write_pages(&program, dir))
        .map_err(|e| format!("{}: {e}", dir.display()))
}

fn write_pages(command: &Command, dir: &Path) -> io::Result<()> {
    for subcommand in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        write_pages(subcommand, dir)?;
    }
    let man = clap_mangen::Man::new(command.clone());
    fs::write(dir.join(man.get_filename()), render(&man)?)
}

/// The page, in which the examples have a section of their own.
fn render(man: &clap_mangen::Man) -> io::Result<String> {
    let mut page = Vec::new();
    man.render(&mut page)?;
    let page = String::from_utf8(page).map_err(io::Error::other)?;
    Ok(page.replacen(&format!(".SH EXTRA\n{HEADING}\n"), ".SH EXAMPLES\n", 1))
}
