//! Reader of the Standard Workload Format of the Parallel Workloads Archive: Chapin et al., Benchmarks and
//! standards for the evaluation of parallel job schedulers, JSSPP 1999.

use std::path::Path;

use anyhow::{Context, bail};

use super::{Job, Trace, split, text};

/// Memory per processor of a job, since few logs have it; the nodes have this much per processor.
pub(crate) const MEMORY_BYTES_PER_CPU: u64 = 1 << 20;

/// The machine that a log was recorded on, from the log's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) nodes: u32,
    pub(crate) cpus_per_node: u32,
}

/// Reads the jobs and splits each over the nodes of the machine that the log's header names.
///
/// # Errors
/// Names the line and field that can't be parsed, or the field that the header lacks.
pub(crate) fn read_jobs(path: &Path) -> anyhow::Result<(Machine, Trace)> {
    let text = text(path)?;
    let machine = machine(&text).with_context(|| path.display().to_string())?;
    let (mut jobs, mut left_out) = (Vec::new(), 0);
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with(';')) {
        if line.trim().is_empty() {
            continue;
        }
        match job(line, machine).with_context(|| format!("{}, line {}", path.display(), number + 1))? {
            Some(job) => jobs.push(job),
            None => left_out += 1,
        }
    }
    Ok((machine, Trace::new(jobs, left_out, path)?))
}

fn machine(text: &str) -> anyhow::Result<Machine> {
    let field = |name: &str| {
        let value = text.lines().take_while(|line| line.trim_start().starts_with(';')).find_map(|line| {
            let (key, value) = line.trim_start_matches([';', ' ']).split_once(':')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        })?;
        Some(value.parse::<u32>().with_context(|| format!("{name} {value:?}")))
    };
    let cpus = field("MaxProcs").transpose()?;
    let nodes = field("MaxNodes").transpose()?.filter(|nodes| *nodes > 0).or(cpus);
    let (Some(nodes), Some(cpus)) = (nodes, cpus.or(nodes)) else {
        bail!("the header has neither MaxNodes nor MaxProcs: the size of the machine is unknown");
    };
    if nodes == 0 || cpus < nodes {
        bail!("a machine of {nodes} nodes with {cpus} processors: each node must have at least one");
    }
    Ok(Machine { nodes, cpus_per_node: cpus / nodes })
}

/// The job with its arrival in seconds; `None` if the log lacks its run time or processors.
fn job(line: &str, machine: Machine) -> anyhow::Result<Option<(u64, Job)>> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let field = |at: usize, name: &str| {
        let text = fields.get(at).with_context(|| format!("field {} ({name}) is missing", at + 1))?;
        // Some logs have fractions of a second.
        let value: f64 = text.parse().with_context(|| format!("field {} ({name}): {text:?}", at + 1))?;
        anyhow::ensure!(value.abs() < 1e12, "field {} ({name}): {text:?} is too large", at + 1);
        Ok(value as i64)
    };
    let (at, seconds) = (field(1, "submit time")?, field(3, "run time")?);
    let (allocated, requested) = (field(4, "allocated processors")?, field(7, "requested processors")?);
    let cpus = if requested > 0 { requested } else { allocated };
    let (Ok(at), Ok(seconds), Ok(cpus)) = (u64::try_from(at), u64::try_from(seconds), u32::try_from(cpus))
    else {
        return Ok(None);
    };
    if cpus == 0 {
        return Ok(None);
    }
    let (tasks, each) = split(cpus, machine.cpus_per_node);
    let job = Job {
        arrives_ms: 0,
        duration_ms: seconds * 1_000,
        tasks,
        cpu_millis: u64::from(each) * 1_000,
        memory_bytes: u64::from(each) * MEMORY_BYTES_PER_CPU,
        devices: None,
        models: Vec::new(),
    };
    Ok(Some((at, job)))
}

#[cfg(test)]
mod tests {
    use super::super::tests::File;
    use super::*;

    const HEADING: &str = "; Version: 2.2\n; MaxNodes: 32\n; MaxProcs: 128\n;\n";

    fn read(text: &str) -> anyhow::Result<(Machine, Trace)> {
        let file = File::new("swf", text.as_bytes());
        read_jobs(&file.0)
    }

    #[test]
    fn job_is_a_gang_of_tasks_that_fit_a_node() {
        let rows = "1 100 -1 60 128 -1 -1 -1 -1 -1 -1 1 1 -1 -1 -1 -1 -1\n\
                    2 105 -1 7 1 -1 -1 3 -1 -1 -1 1 1 -1 -1 -1 -1 -1\n\
                    3 106 -1 -1 1 -1 -1 -1 -1 -1 -1 1 1 -1 -1 -1 -1 -1\n";
        let (machine, trace) = read(&format!("{HEADING}{rows}")).unwrap();
        assert_eq!(machine, Machine { nodes: 32, cpus_per_node: 4 });
        let found: Vec<_> = trace
            .jobs
            .iter()
            .map(|job| (job.arrives_ms, job.duration_ms, job.tasks, job.cpu_millis))
            .collect();
        // The requested processors, where the log has them.
        assert_eq!(found, [(0, 60_000, 32, 4_000), (5_000, 7_000, 1, 3_000)]);
        assert_eq!(trace.left_out, 1, "one job has no run time");
    }

    #[test]
    fn error_names_the_line_and_field() {
        let error = |text: &str| format!("{:#}", read(text).err().unwrap());
        assert!(error("1 0 -1 60 128 -1 -1 -1\n").contains("neither MaxNodes nor MaxProcs"));
        assert!(error("; MaxNodes: many\n").contains("MaxNodes \"many\""));
        assert!(
            error("; MaxNodes: 4\n; MaxProcs: 2\n1 0 0 1 1 0 0 1\n").contains("4 nodes with 2 processors")
        );
        assert!(
            error(&format!("{HEADING}1 x -1 60 1 0 0 0\n")).contains("line 5: field 2 (submit time): \"x\"")
        );
        assert!(
            error(&format!("{HEADING}1 0 -1 60\n"))
                .contains("line 5: field 5 (allocated processors) is missing")
        );
    }
}
