//! `weir completion`.

use clap::CommandFactory;

use super::{Cli, Failure};

/// Prints a shell's completion script.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  weir completion bash > /etc/bash_completion.d/weir")]
pub struct Completion {
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

impl Completion {
    pub fn run(self) -> Result<u8, Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "weir", &mut script);
        super::output::print_raw(&String::from_utf8_lossy(&script))?;
        Ok(0)
    }
}
