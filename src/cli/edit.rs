//! `weir edit`, `weir hold` and `weir release`: change jobs that have not ended.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::connect::{RETRY_TIMEOUT, job_name, new_token, with_retries};
use super::exit::INVALID;
use super::input::{self, Problem, Problems, read_documents};
use super::job_list::{Targets, find_job_with_retries};
use super::job_wait::has_ended;
use super::output::{announce, report};
use super::plan::labels;
use super::{Connect, Failure, quantity};
use crate::api::client::Client;
use crate::api::proto::v1;
use crate::model::amount;
use crate::model::text::escape;

/// Change a job that has not ended.
///
/// Without flags, an editor is opened: VISUAL, else EDITOR, else vi. A new maximum run time is that of attempts that start
/// later; it ends a running attempt only if it is shorter than before.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir edit job/train-7                        in an editor\n  weir edit job/train-7 --priority 100\n  weir edit job/train-7 --max-run 12h --label team=vision --remove-label test"
)]
pub struct Edit {
    /// Job: job/NAME, job/QUEUE/NAME or the id.
    job: String,
    /// Priority, -1000000 to 1000000.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    priority: Option<i32>,
    /// Maximum run time of an attempt: 90s, 5m, 1h30m.
    #[arg(long, value_name = "DURATION", value_parser = quantity::run_time_ms)]
    max_run: Option<u64>,
    /// Label to set. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Label to remove. May be repeated.
    #[arg(long, value_name = "KEY")]
    remove_label: Vec<String>,
}

/// Hold jobs: they start nothing until they are released. What runs goes on.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  weir hold job/train-7\n  weir hold -l team=vision\n  weir submit --hold job.yaml     a job that is held from the beginning"
)]
pub struct Hold {
    #[command(flatten)]
    targets: Targets,
}

/// Release jobs that are held.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  weir release job/train-7\n  weir release --all --queue research")]
pub struct Release {
    #[command(flatten)]
    targets: Targets,
}

impl Hold {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        set_held(connect, &self.targets, true).await
    }
}

impl Release {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        set_held(connect, &self.targets, false).await
    }
}

async fn set_held(connect: &Connect, targets: &Targets, held: bool) -> Result<u8, Failure> {
    let client = connect.client()?;
    let (jobs, missing) = targets.find(&client, connect).await?;
    let (ended, live): (Vec<_>, Vec<_>) = jobs.into_iter().partition(has_ended);
    for job in &ended {
        report(&format!("{} had ended before", job_name(&job.queue, &job.name)));
    }
    for job in &live {
        let change = v1::JobChange { held: Some(held), ..v1::JobChange::default() };
        update(&client, job, change).await?;
        let name = job_name(&job.queue, &job.name);
        announce(&if held { format!("{name} held") } else { format!("{name} released") })?;
    }
    missing.map_or(Ok(0), Err)
}

/// Changes a job by its number: another job may have the name by now.
async fn update(client: &Client, job: &v1::Job, change: v1::JobChange) -> Result<(), Failure> {
    let request = v1::UpdateJobRequest {
        token: new_token(),
        job: Some(v1::JobRef { id: job.id, ..v1::JobRef::default() }),
        revision: 0,
        change: Some(change),
    };
    let call = || async { client.jobs().update_job(request.clone()).await };
    with_retries(RETRY_TIMEOUT, call)
        .await
        .map(drop)
        .map_err(|status| Failure::from(status).with_fields(in_file))
}

/// A field of a change as flags and the edited file call it.
fn in_file(field: &str) -> String {
    match field.strip_prefix("change.").unwrap_or(field) {
        "max_run_ms" => "max_run".to_owned(),
        other => other.to_owned(),
    }
}

impl Edit {
    pub async fn run(self, connect: &Connect) -> Result<u8, Failure> {
        let labels = labels("--label", &self.label)?;
        let client = connect.client()?;
        let job = find_job_with_retries(&client, connect.job_ref(&self.job)?).await?;
        let name = job_name(&job.queue, &job.name);
        if has_ended(&job) {
            return Err(Failure::new(super::exit::CONFLICT, format!("{name} has ended"))
                .hint("`weir rerun` runs what did not succeed once more"));
        }
        let change = v1::JobChange {
            priority: self.priority,
            held: None,
            max_run_ms: self.max_run,
            labels,
            labels_removed: self.remove_label.clone(),
        };
        if change != v1::JobChange::default() {
            update(&client, &job, change).await?;
            announce(&format!("{name} updated"))?;
            return Ok(0);
        }
        let path = write_edit(&job, &name)?;
        if let Err(failure) = open_editor(&path) {
            remove(&path);
            return Err(failure);
        }
        let changed = match read_edit(&path).and_then(|edit| edit.changes(&JobEdit::of(&job))) {
            Ok(None) => Ok(false),
            Ok(Some(change)) => update(&client, &job, change).await.map(|()| true),
            Err(failure) => Err(failure),
        };
        // What was refused is not lost.
        let changed =
            changed.map_err(|failure| failure.hint(format!("what you wrote is in {}", path.display())))?;
        remove(&path);
        announce(&if changed { format!("{name} updated") } else { format!("{name} unchanged") })?;
        Ok(0)
    }
}

/// Removes what was edited. That it can't be removed changes nothing for the job.
fn remove(path: &Path) {
    let _ = std::fs::remove_file(path);
}

/// What can be changed of a job, as it stands in the editor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JobEdit {
    priority: i32,
    held: bool,
    max_run: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

impl JobEdit {
    fn of(job: &v1::Job) -> Self {
        let spec = job.spec.clone().unwrap_or_default();
        let max_run = amount::duration(spec.max_run_ms);
        Self { priority: spec.priority, held: job.held, max_run, labels: spec.labels }
    }

    /// What differs from `before`; `None` if nothing does.
    fn changes(&self, before: &Self) -> Result<Option<v1::JobChange>, Failure> {
        let invalid = |message| Failure::new(INVALID, format!("max_run: {message}"));
        let max_run_ms = quantity::run_time_ms(&self.max_run).map_err(invalid)?;
        let is_new = |(key, value): &(&String, &String)| before.labels.get(*key) != Some(value);
        let set = self.labels.iter().filter(is_new);
        let removed = before.labels.keys().filter(|key| !self.labels.contains_key(*key));
        Ok((self != before).then(|| v1::JobChange {
            priority: (self.priority != before.priority).then_some(self.priority),
            held: (self.held != before.held).then_some(self.held),
            max_run_ms: (self.max_run != before.max_run).then_some(max_run_ms),
            labels: set.map(|(key, value)| (key.clone(), value.clone())).collect(),
            labels_removed: removed.cloned().collect(),
        }))
    }
}

/// Writes what can be changed of a job into a new file for the editor.
fn write_edit(job: &v1::Job, name: &str) -> Result<PathBuf, Failure> {
    let yaml = serde_saphyr::to_string(&JobEdit::of(job)).map_err(anyhow::Error::from)?;
    let path = std::env::temp_dir().join(format!("weir-edit-{}-{}.yaml", job.id, std::process::id()));
    let text = format!("# {}: what can be changed while the job has not ended.\n{yaml}", escape(name));
    // Labels may be private, and a link that was put there before must not be followed.
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    file.write_all(text.as_bytes())?;
    Ok(path)
}

fn read_edit(path: &Path) -> Result<JobEdit, Failure> {
    let name = path.display().to_string();
    let text = input::read_text(&name)?;
    let failed = |problems: &[Problem]| input::failure(&name, problems);
    let documents = read_documents(&text).map_err(|message| failed(&[Problem::of_file(message)]))?;
    let mut problems = Problems::default();
    let value = documents.into_iter().next().unwrap_or_default();
    let read = problems.read::<JobEdit>("", value);
    let positions = input::Positions::of(&text);
    match read {
        Some(edit) if problems.is_empty() => Ok(edit),
        _ => Err(failed(&problems.located(|field| positions.find(0, field)))),
    }
}

/// Opens the user's editor and waits for its end.
fn open_editor(path: &Path) -> Result<(), Failure> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let editor = variable("VISUAL").or_else(|| variable("EDITOR")).unwrap_or_else(|| "vi".to_owned());
    // The variables may hold arguments, as in `code --wait`.
    let mut words = editor.split_whitespace();
    let program = PathBuf::from(words.next().unwrap_or("vi"));
    let status = std::process::Command::new(&program).args(words).arg(path).status();
    let status = status.map_err(|error| {
        Failure::new(1, format!("can't start the editor {}: {error}", program.display()))
            .hint("set EDITOR, or change the job by flags: --priority, --max-run, --label")
    })?;
    if status.success() {
        Ok(())
    } else {
        Err(Failure::new(1, format!("the editor {} ended with {status}", program.display())))
    }
}
