//! The system under test: a broker on a small disk, agents of host pools in several regions, and proxies as
//! links between them. Injects and heals faults.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::clients::Access;
use crate::commands::STEADY_POOL;
use crate::managed::ManagedProcess;
use crate::schedule::{Fault, Lane, POOLS};
use crate::support::disk::{FaultyDisk, Tmpfs};
use crate::support::proxy::Proxy;
use crate::support::{Home, processes_with, run_as, supervisor_of, until, weir_in};
use crate::work::HISTORY;

/// Time limit for starting processes and remounting, on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Interval at which ended processes are restarted.
const MONITOR_INTERVAL: Duration = Duration::from_millis(100);
/// Ports for the broker: below the ephemeral ports, since another process could be given the broker's port
/// while the broker is down.
const PORTS: std::ops::Range<u16> = 15_000..32_000;
const REGIONS: [&str; POOLS] = ["CN-CQ", "CN-GZ", "CN-XJ"];

/// The system under test. Dropping it ends all processes and removes all files, unless the run failed.
pub struct Testbed {
    /// Declared before `home`, so that it is unmounted before the folder is removed.
    disk: Option<(Tmpfs, FaultyDisk)>,
    pub home: Home,
    pub broker: Arc<ManagedProcess>,
    pub agents: Vec<Arc<ManagedProcess>>,
    links: Vec<Proxy>,
    clients: Proxy,
    token: String,
    monitoring: Arc<AtomicBool>,
    monitor: Option<std::thread::JoinHandle<()>>,
}

/// Finds a port on which no process listens.
fn free_port() -> u16 {
    let free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let first = PORTS.start + (rand::random::<u16>() % (PORTS.end - PORTS.start));
    (first..PORTS.end).chain(PORTS).find(free).expect("a free port")
}

impl Testbed {
    /// Starts all processes. Where disk faults can't be injected, a message on standard error that names
    /// `test` reports that they are skipped.
    pub fn start(test: &str, runtime: &tokio::runtime::Runtime) -> Self {
        let mut home = Home::new();
        std::fs::create_dir(home.data()).expect("a folder");
        let disk = Tmpfs::mount(test, &home.data(), "32m")
            .and_then(|small| Some((small, FaultyDisk::prepare(test, home.path())?)));
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        home.address = address.to_string();
        let log = |name: &str| home.path().join(format!("{name}.log"));
        let env: Vec<(&str, PathBuf)> = disk.iter().flat_map(|(_, faulty)| faulty.env()).collect();
        let (folder, data) = (home.path().to_owned(), home.data());
        let broker = ManagedProcess::new("broker", log("broker"), {
            let (folder, address) = (folder.clone(), home.address.clone());
            move || {
                let mut command = weir_in(&folder);
                let arguments = ["server", "--listen", &address, "--data"];
                command.args(arguments).arg(&data).envs(env.iter().cloned());
                command
            }
        });
        let proxy = || runtime.block_on(Proxy::start(address));
        let links: Vec<Proxy> = (0..POOLS).map(|_| proxy()).collect();
        let agents = (0..POOLS).map(|pool| {
            let name = format!("pool-{pool}");
            let file = agent_file(&home, pool, links[pool].address);
            let folder = folder.clone();
            Arc::new(ManagedProcess::new(&name, log(&name), move || {
                let mut command = weir_in(&folder);
                command.arg("agent").arg(&file);
                command
            }))
        });
        let agents: Vec<_> = agents.collect();
        let (broker, clients) = (Arc::new(broker), proxy());
        let monitoring = Arc::new(AtomicBool::new(true));
        let (token, monitor) = (String::new(), None);
        let mut testbed = Self { disk, home, broker, agents, links, clients, token, monitoring, monitor };
        testbed.start_processes();
        testbed
    }

    fn start_processes(&mut self) {
        let token = self.home.data().join("token");
        // The agents read the token when they start.
        until("the broker has written its token", START_TIMEOUT, || {
            self.broker.start_if_ended();
            token.exists()
        });
        self.token = std::fs::read_to_string(token).expect("the token");
        let (monitoring, agents, broker) =
            (self.monitoring.clone(), self.agents.clone(), self.broker.clone());
        self.monitor = Some(std::thread::spawn(move || {
            while monitoring.load(Ordering::Relaxed) {
                broker.start_if_ended();
                agents.iter().for_each(|agent| agent.start_if_ended());
                std::thread::park_timeout(MONITOR_INTERVAL);
            }
        }));
    }

    /// Address and token for clients. They have a link of their own.
    pub fn access(&self) -> Access {
        Access { address: self.clients.address.to_string(), token: self.token.clone() }
    }

    /// The history file of the tasks, on a disk without faults.
    pub fn history(&self) -> PathBuf {
        self.home.path().join("history")
    }

    /// Running processes of tasks.
    pub fn tasks(&self) -> Vec<Pid> {
        processes_with(&format!("{HISTORY}={}", self.history().display()))
    }

    /// Injects a fault.
    pub fn inject(&self, lane: Lane, fault: Fault) {
        match fault {
            Fault::Kill => self.process(lane).kill(),
            Fault::Down => self.process(lane).set_disabled(true),
            Fault::Terminate => self.process(lane).terminate(),
            Fault::Pause => self.process(lane).pause(),
            Fault::KillSupervisor => {
                kill(supervisor_of(&self.state_folder(lane)));
            }
            Fault::KillMachine => self.kill_machine(lane),
            Fault::Link { condition, .. } => self.link(lane).set(condition),
            Fault::DiskFull => self.fill_disk(),
            Fault::DiskMountedReadOnly => self.mount_read_only(),
            Fault::JournalBecomesReadOnly => self.faulty(|_, faulty| faulty.make_read_only(true)),
            Fault::SyncsFail => self.faulty(|_, faulty| faulty.fail_syncs(true)),
        }
    }

    /// Ends a fault.
    pub fn heal(&self, lane: Lane, fault: Fault) {
        match fault {
            Fault::Kill | Fault::Terminate | Fault::KillSupervisor | Fault::KillMachine => {}
            Fault::Down => self.process(lane).set_disabled(false),
            Fault::Pause => self.process(lane).resume(),
            Fault::Link { torn_after, .. } => self.link(lane).heal(torn_after),
            Fault::DiskFull => {
                let _ = std::fs::remove_file(self.ballast());
            }
            Fault::DiskMountedReadOnly => self.faulty(|small, _| small.remount("rw").expect("a disk")),
            Fault::JournalBecomesReadOnly => self.faulty(|_, faulty| faulty.make_read_only(false)),
            Fault::SyncsFail => self.faulty(|_, faulty| faulty.fail_syncs(false)),
        }
    }

    fn process(&self, lane: Lane) -> &ManagedProcess {
        match lane {
            Lane::Broker => &self.broker,
            Lane::Agent(pool) => &self.agents[pool],
            Lane::Link(_) | Lane::Clients | Lane::Disk => panic!("{lane:?} is not a process"),
        }
    }

    fn link(&self, lane: Lane) -> &Proxy {
        match lane {
            Lane::Link(pool) => &self.links[pool],
            Lane::Clients => &self.clients,
            Lane::Broker | Lane::Agent(_) | Lane::Disk => panic!("{lane:?} is not a link"),
        }
    }

    fn faulty(&self, act: impl FnOnce(&Tmpfs, &FaultyDisk)) {
        // Without disk faults, `start` has reported that they are skipped.
        if let Some((small, faulty)) = &self.disk {
            act(small, faulty);
        }
    }

    fn ballast(&self) -> PathBuf {
        self.home.data().join("ballast")
    }

    fn state_folder(&self, lane: Lane) -> PathBuf {
        let Lane::Agent(pool) = lane else { panic!("{lane:?} has no state folder") };
        state_folder(&self.home, pool)
    }

    fn kill_machine(&self, lane: Lane) {
        let Lane::Agent(pool) = lane else { panic!("{lane:?} is not a machine") };
        self.agents[pool].set_disabled(true);
        // Kill the supervisor first: it could start more tasks.
        kill(supervisor_of(&self.state_folder(lane)));
        let of_pool = processes_with(&format!("WEIR_POOL=pool-{pool}"));
        kill(self.tasks().into_iter().filter(|pid| of_pool.contains(pid)));
        self.agents[pool].set_disabled(false);
    }

    /// Fills the disk up to the last page.
    fn fill_disk(&self) {
        if self.disk.is_none() {
            return;
        }
        let mut ballast = File::create(self.ballast()).expect("a file");
        for bytes in [1 << 20, 4_096] {
            let piece = vec![0; bytes];
            while ballast.write_all(&piece).is_ok() {}
        }
    }

    /// Remounts the disk read-only. Kills the broker each time before trying: the remount fails while a file
    /// is open for writing.
    fn mount_read_only(&self) {
        self.faulty(|small, _| {
            until("the disk is read-only", START_TIMEOUT, || {
                self.broker.kill();
                small.remount("ro").is_ok()
            });
        });
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        self.monitoring.store(false, Ordering::Relaxed);
        if let Some(monitor) = self.monitor.take() {
            let _ = monitor.join();
        }
        self.agents.iter().for_each(|agent| agent.set_disabled(true));
        self.broker.set_disabled(true);
        let supervisors = (0..POOLS).filter_map(|pool| supervisor_of(&state_folder(&self.home, pool)));
        kill(supervisors.chain(self.tasks()));
        if std::thread::panicking() {
            // The small disk is unmounted: copy its files for the analysis.
            let _ = std::process::Command::new("cp")
                .arg("-r")
                .arg(self.home.data())
                .arg(self.home.path().join("data-left"))
                .status();
            self.home.folder.disable_cleanup(true);
        }
    }
}

fn kill(pids: impl IntoIterator<Item = Pid>) {
    for pid in pids {
        // Fails if the process has ended already.
        let _ = kill_process(pid, Signal::KILL);
    }
}

fn state_folder(home: &Home, pool: usize) -> PathBuf {
    home.path().join(format!("pool-{pool}"))
}

fn agent_file(home: &Home, pool: usize, broker: SocketAddr) -> PathBuf {
    let (token, state) = (home.data().join("token"), state_folder(home, pool));
    let region = REGIONS[pool];
    // Small pools are filled, so that all pools get work. The steady pool must not be a bottleneck.
    let cpus = if pool == STEADY_POOL { 12 } else { 4 };
    let text = format!(
        "name = \"pool-{pool}\"\nregion = \"{region}\"\nserver = \"http://{broker}\"\ntoken_file = {token:?}\n\
         state = {state:?}\n[host]\ncpus = {cpus}\nmemory_mib = 65536\n{}",
        run_as()
    );
    let file = home.path().join(format!("pool-{pool}.toml"));
    std::fs::write(&file, text).expect("the agent's file");
    file
}
