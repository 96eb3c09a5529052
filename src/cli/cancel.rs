//! `weir cancel`.

use super::connect::{PATIENCE, new_token, patiently};
use super::{Connect, Failure};
use crate::api::proto::v1;

/// Cancels jobs.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  weir cancel job/train-7 job/train-8")]
pub struct Cancel {
    /// job/NAME, any number.
    #[arg(required = true)]
    jobs: Vec<String>,
}

impl Cancel {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        let client = connect.client()?;
        let jobs = self.jobs.iter().map(|text| connect.job_ref(text)).collect::<Result<Vec<_>, _>>()?;
        let request = v1::CancelRequest { token: new_token(), jobs };
        patiently(PATIENCE, || async { client.jobs().cancel(request.clone()).await }).await?;
        Ok(0)
    }
}
