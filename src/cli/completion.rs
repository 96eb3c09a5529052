//! `weir completion`: shell completion scripts.

use clap::CommandFactory;

use super::{Cli, Failure};

/// Print a shell completion script.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir completion bash > /etc/bash_completion.d/weir\n  weir completion zsh > ~/.zfunc/_weir"
)]
pub struct Completion {
    /// Shell to generate the script for.
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
