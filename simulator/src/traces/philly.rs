//! Reader of the Philly trace: jobs of Microsoft's GPU clusters in late 2017 (msr-fiddle/philly-traces), as a
//! CSV of submission time, duration and GPUs.

use std::path::Path;
use std::time::UNIX_EPOCH;

use anyhow::{Context, bail};
use weir::model::device::DeviceAmount;

use super::{Job, Trace, rows, split};

/// CPU per GPU of a task, since the trace has no CPU requests; the nodes have this much per GPU.
pub(crate) const CPU_MILLIS_PER_GPU: u64 = 4_000;
/// Memory per GPU of a task, since the trace has no memory requests; the nodes have this much per GPU.
pub(crate) const MEMORY_BYTES_PER_GPU: u64 = 16 << 30;

/// Reads jobs and splits each over nodes of `gpus_per_node` GPUs. Jobs without GPUs are skipped.
///
/// # Errors
/// Names the missing column, or the line and cell that can't be parsed.
pub(crate) fn read_jobs(path: &Path, gpus_per_node: u32) -> anyhow::Result<Trace> {
    let jobs = rows(path, &["timestamp", "duration", "num_gpus"], |cells| {
        let at = humantime::parse_rfc3339_weak(cells[0])
            .with_context(|| format!("timestamp {:?}: write YYYY-MM-DD hh:mm:ss", cells[0]))?;
        let at = at.duration_since(UNIX_EPOCH).context("timestamp")?.as_secs();
        let seconds: f64 = cells[1].parse().with_context(|| format!("duration {:?}", cells[1]))?;
        let gpus: u32 = cells[2].parse().with_context(|| format!("num_gpus {:?}", cells[2]))?;
        if !(0.0..1e9).contains(&seconds) {
            bail!("duration {seconds}: must be 0 to 1,000,000,000 seconds");
        }
        let (tasks, each) = split(gpus, gpus_per_node);
        let job = Job {
            arrives_ms: 0,
            duration_ms: (seconds * 1_000.0) as u64,
            tasks,
            cpu_millis: u64::from(each) * CPU_MILLIS_PER_GPU,
            memory_bytes: u64::from(each) * MEMORY_BYTES_PER_GPU,
            devices: Some(DeviceAmount::Whole(each)),
            models: Vec::new(),
        };
        Ok((gpus > 0).then_some((at, job)))
    })?;
    let all = jobs.len();
    let jobs: Vec<_> = jobs.into_iter().flatten().collect();
    let left_out = all - jobs.len();
    Trace::new(jobs, left_out, path)
}

#[cfg(test)]
mod tests {
    use super::super::tests::File;
    use super::*;

    #[test]
    fn jobs_are_sorted_by_arrival_and_those_without_a_gpu_are_skipped() {
        let file = File::new(
            "philly",
            b"timestamp,duration,num_gpus,cluster\n2017-10-09 07:01:55,66.5,16,a\n2017-10-09 07:00:00,3.0,1,a\n2017-10-09 07:03:00,3.0,0,a\n",
        );
        let trace = read_jobs(&file.0, 8).unwrap();
        let found: Vec<_> =
            trace.jobs.iter().map(|job| (job.arrives_ms, job.duration_ms, job.tasks, job.devices)).collect();
        assert_eq!(
            found,
            [(0, 3_000, 1, Some(DeviceAmount::Whole(1))), (115_000, 66_500, 2, Some(DeviceAmount::Whole(8)))]
        );
        assert_eq!(trace.left_out, 1);
    }

    #[test]
    fn error_names_the_line_and_cell() {
        let heading = "timestamp,duration,num_gpus\n";
        for (row, expected) in [
            ("yesterday,1,1", "line 2: timestamp \"yesterday\""),
            ("2017-10-09 07:01:55,-1,1", "line 2: duration -1: must be"),
            ("2017-10-09 07:01:55,NaN,1", "line 2: duration NaN: must be"),
            ("2017-10-09 07:01:55,1,-4", "line 2: num_gpus \"-4\""),
        ] {
            let file = File::new("philly-bad", format!("{heading}{row}\n").as_bytes());
            let error = format!("{:#}", read_jobs(&file.0, 8).err().unwrap());
            assert!(error.contains(expected), "{error}");
        }
        let file = File::new("philly-empty", heading.as_bytes());
        assert!(read_jobs(&file.0, 8).err().unwrap().to_string().ends_with("has no job"));
    }
}
