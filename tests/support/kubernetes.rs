//! A real Kubernetes control plane on loopback; kwok plays the kubelets, as `tests/real/kubernetes/`
//! says.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use k8s_openapi::ByteString;
use serde_json::{Value, json};

use super::{Process, until};

const PATIENCE: Duration = Duration::from_secs(120);
const PROGRAMS: [&str; 5] = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok"];
/// Whoever has it may do everything.
const ADMIN: &str = "admin-token";

/// A control plane. Its programs end with it.
pub struct ControlPlane {
    folder: tempfile::TempDir,
    programs: Programs,
    api_port: u16,
    etcd_port: u16,
    api: Mutex<Option<Process>>,
    /// The API server keeps a record of the pods that are created and bound, in `audit.log`.
    is_on_record: bool,
    _others: Vec<Process>,
}

/// What etcd answers, while `kubectl` passes it on.
struct Answer {
    output: std::io::BufReader<std::process::ChildStdout>,
    _process: Process,
}

impl std::io::Read for Answer {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.output.read(buffer)
    }
}

/// Where the programs are: what a user has already, then what `tests/real/kubernetes/build` made.
struct Programs(Vec<PathBuf>);

impl Programs {
    fn find() -> Option<Self> {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
        let built = std::env::var_os("WEIR_KUBERNETES").map(PathBuf::from);
        let built = built.or_else(|| Some(cache?.join("weir/kubernetes")));
        let own = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = own.into_iter().chain(built).chain(std::env::split_paths(&path)).collect();
        let programs = Self(folders);
        PROGRAMS.iter().chain(&["kubectl"]).all(|name| programs.path(name).is_some()).then_some(programs)
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.0.iter().map(|folder| folder.join(name)).find(|path| path.is_file())
    }
}

fn free_ports<const N: usize>() -> [u16; N] {
    // Held together, so that they differ.
    let listeners = [(); N].map(|()| std::net::TcpListener::bind("127.0.0.1:0").expect("a port"));
    listeners.map(|listener| listener.local_addr().expect("an address").port())
}

/// As JSON says bytes.
fn bytes(text: &str) -> ByteString {
    ByteString(text.as_bytes().to_vec())
}

fn openssl(arguments: &[&str]) {
    let done = Command::new("openssl").args(arguments).stderr(Stdio::null()).stdout(Stdio::null()).status();
    assert!(done.expect("openssl").success(), "openssl {arguments:?}");
}

impl ControlPlane {
    /// The one that the tests of this binary share, while any of them has it; `None`, and a loud line,
    /// where its programs are missing.
    pub fn shared(test: &str) -> Option<Arc<Self>> {
        static SHARED: Mutex<Weak<ControlPlane>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = shared.upgrade() {
            return Some(running);
        }
        let started = Arc::new(Self::start(test)?);
        *shared = Arc::downgrade(&started);
        Some(started)
    }

    /// One of a test's own.
    pub fn start(test: &str) -> Option<Self> {
        Self::start_with(test, &["kube-controller-manager", "kube-scheduler", "kwok"])
    }

    /// etcd and an API server, and these besides; `record` is the API server's of who created and bound pods.
    pub fn start_with(test: &str, parts: &[&str]) -> Option<Self> {
        let Some(programs) = Programs::find() else {
            let why = "there is no Kubernetes control plane: tests/real/kubernetes/build makes one";
            assert!(std::env::var_os("WEIR_REQUIRE_REAL").is_none(), "{test}: {why}");
            let line = format!("SKIPPED: {test}: {why}\n");
            std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).expect("standard error");
            return None;
        };
        let folder = tempfile::Builder::new().prefix("weirk").tempdir_in("/tmp").expect("a temp folder");
        let at = |name: &str| folder.path().join(name).display().to_string();
        let [api_port, etcd_port, peer_port, kwok_port] = free_ports();
        openssl(&["genrsa", "-out", &at("sa.key"), "2048"]);
        openssl(&["rsa", "-in", &at("sa.key"), "-pubout", "-out", &at("sa.pub")]);
        std::fs::write(at("tokens.csv"), format!("{ADMIN},admin,admin,system:masters\n")).expect("tokens");
        let start = |name: &str, arguments: &[String]| {
            let log = std::fs::File::create(folder.path().join(format!("{name}.log"))).expect("a log");
            let error = log.try_clone().expect("a second handle");
            let mut command = Command::new(programs.path(name).expect("found above"));
            command.args(arguments).stdin(Stdio::null()).stdout(log).stderr(error);
            Process(command.spawn().expect("a program of the control plane"))
        };
        let text = |arguments: &[&str]| arguments.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>();
        let (client, peer) =
            (format!("http://127.0.0.1:{etcd_port}"), format!("http://127.0.0.1:{peer_port}"));
        let etcd = start(
            "etcd",
            &text(&[
                "--name=e",
                &format!("--data-dir={}", at("etcd")),
                "--unsafe-no-fsync",
                &format!("--listen-client-urls={client}"),
                &format!("--advertise-client-urls={client}"),
                &format!("--listen-peer-urls={peer}"),
                &format!("--initial-advertise-peer-urls={peer}"),
                &format!("--initial-cluster=e={peer}"),
            ]),
        );
        let config = format!(
            r#"{{"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "contexts": [{{"name": "c", "context": {{"cluster": "c", "user": "u"}}}}],
            "clusters": [{{"name": "c", "cluster": {{"server": "https://127.0.0.1:{api_port}", "certificate-authority": "{}"}}}}],
            "users": [{{"name": "u", "user": {{"token": "{ADMIN}"}}}}]}}"#,
            at("certs/apiserver.crt")
        );
        std::fs::write(at("kubeconfig"), config).expect("a kubeconfig");
        let is_on_record = parts.contains(&"record");
        let (api, _others) = (Mutex::new(None), vec![etcd]);
        let mut plane = Self { folder, programs, api_port, etcd_port, api, is_on_record, _others };
        plane.start_api();
        let kubeconfig = plane.kubeconfig().display().to_string();
        let stages = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real/kubernetes/stages.yaml");
        let config = format!("--kubeconfig={kubeconfig}");
        let logs = plane.path("logs.yaml");
        let text = format!(
            "apiVersion: kwok.x-k8s.io/v1alpha1\nkind: ClusterLogs\nmetadata: {{name: logs}}\n\
             spec: {{logs: [{{containers: [task], logsFile: {:?}, follow: true}}]}}\n",
            plane.task_log()
        );
        std::fs::write(&logs, text).expect("a configuration");
        std::fs::write(plane.task_log(), "").expect("a log");
        let key = plane.path("sa.key").display().to_string();
        let more = [
            (
                "kube-controller-manager",
                vec![
                    config.clone(),
                    format!("--service-account-private-key-file={key}"),
                    "--use-service-account-credentials=false".to_owned(),
                    "--leader-elect=false".to_owned(),
                    "--bind-address=127.0.0.1".to_owned(),
                    "--secure-port=0".to_owned(),
                ],
            ),
            (
                "kube-scheduler",
                vec![
                    config.clone(),
                    "--leader-elect=false".to_owned(),
                    "--bind-address=127.0.0.1".to_owned(),
                    "--secure-port=0".to_owned(),
                ],
            ),
            (
                "kwok",
                vec![
                    config,
                    "--manage-all-nodes=true".to_owned(),
                    format!("--server-address=127.0.0.1:{kwok_port}"),
                    format!("--node-port={kwok_port}"),
                    format!("--tls-cert-file={}", plane.path("certs/apiserver.crt").display()),
                    format!("--tls-private-key-file={}", plane.path("certs/apiserver.key").display()),
                    format!("--config={}", logs.display()),
                    format!("--config={}", stages.display()),
                ],
            ),
        ];
        for (name, arguments) in more.into_iter().filter(|(name, _)| parts.contains(name)) {
            let log = std::fs::File::create(plane.path(&format!("{name}.log"))).expect("a log");
            let error = log.try_clone().expect("a second handle");
            let mut command = Command::new(plane.programs.path(name).expect("found above"));
            command.args(arguments).stdin(Stdio::null()).stdout(log).stderr(error);
            plane._others.push(Process(command.spawn().expect("a program of the control plane")));
        }
        Some(plane)
    }

    /// A file of the control plane's.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What every task on every node is said to have written, as a container runtime keeps it: lines of
    /// `TIME stdout F TEXT`.
    pub fn task_log(&self) -> PathBuf {
        self.path("task.log")
    }

    /// Access to everything.
    pub fn kubeconfig(&self) -> PathBuf {
        self.path("kubeconfig")
    }

    /// Access with such a token, in a file of this name.
    pub fn kubeconfig_with(&self, name: &str, token: &str) -> PathBuf {
        let text = std::fs::read_to_string(self.kubeconfig()).expect("a kubeconfig").replace(ADMIN, token);
        std::fs::write(self.path(name), text).expect("a kubeconfig");
        self.path(name)
    }

    /// Access to everything by way of another address.
    pub fn kubeconfig_at(&self, name: &str, address: SocketAddr) -> PathBuf {
        let text = std::fs::read_to_string(self.kubeconfig()).expect("a kubeconfig");
        let text = text.replace(&self.api_address().to_string(), &address.to_string());
        std::fs::write(self.path(name), text).expect("a kubeconfig");
        self.path(name)
    }

    /// Makes an account that may do everything, and a kubeconfig that has its token in a file; again for
    /// one that was deleted.
    pub fn account(&self, namespace: &str, name: &str) -> PathBuf {
        self.apply(&format!(
            "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, namespace: {namespace}}}\n---\n\
             apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {{name: {name}}}\n\
             roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}}\n\
             subjects: [{{kind: ServiceAccount, name: {name}, namespace: {namespace}}}]\n"
        ));
        let token = self.kubectl(&["-n", namespace, "create", "token", name]);
        let (file, new) = (self.path(&format!("{name}.token")), self.path(&format!("{name}.token.new")));
        std::fs::write(&new, token.trim()).expect("a token");
        std::fs::rename(&new, &file).expect("a token");
        let text = std::fs::read_to_string(self.kubeconfig()).expect("a kubeconfig");
        let text = text.replace(&format!(r#""token": "{ADMIN}""#), &format!(r#""tokenFile": {file:?}"#));
        let kubeconfig = self.path(&format!("{name}.kubeconfig"));
        std::fs::write(&kubeconfig, text).expect("a kubeconfig");
        kubeconfig
    }

    /// Where the API server listens.
    pub fn api_address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.api_port))
    }

    /// Starts the API server, after `stop_api` again.
    pub fn start_api(&self) {
        let at = |name: &str| self.path(name).display().to_string();
        let mut options = std::fs::OpenOptions::new();
        let log = options.create(true).append(true).open(self.path("kube-apiserver.log")).expect("a log");
        let error = log.try_clone().expect("a second handle");
        let mut command = Command::new(self.programs.path("kube-apiserver").expect("found at the start"));
        command
            .arg(format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port))
            .args([
                "--bind-address=127.0.0.1",
                "--advertise-address=127.0.0.1",
                "--endpoint-reconciler-type=none",
            ])
            .arg(format!("--secure-port={}", self.api_port))
            .arg(format!("--cert-dir={}", at("certs")))
            .arg(format!("--service-account-key-file={}", at("sa.pub")))
            .arg(format!("--service-account-signing-key-file={}", at("sa.key")))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .args(["--service-cluster-ip-range=10.96.0.0/16", "--authorization-mode=RBAC"])
            .arg(format!("--token-auth-file={}", at("tokens.csv")))
            // All of etcd's history stays, for `created_pods`, until a test cuts it off.
            .arg("--etcd-compaction-interval=0")
            .args(if self.is_on_record { self.record_flags() } else { Vec::new() })
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(error);
        let process = Process(command.spawn().expect("an API server"));
        *self.api.lock().unwrap_or_else(PoisonError::into_inner) = Some(process);
        until("the API server is ready", PATIENCE, || self.try_kubectl(&["get", "--raw", "/readyz"]).is_ok());
    }

    fn record_flags(&self) -> Vec<String> {
        let policy = self.path("audit.yaml");
        let text = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n\
                    - {level: Metadata, verbs: [create], resources: [{group: '', resources: [pods, pods/binding]}]}\n\
                    - {level: None}\n";
        std::fs::write(&policy, text).expect("a policy");
        let log = self.path("audit.log");
        vec![
            format!("--audit-policy-file={}", policy.display()),
            format!("--audit-log-path={}", log.display()),
        ]
    }

    /// Ends the API server as a power cut would.
    pub fn stop_api(&self) {
        *self.api.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Runs kubectl with all rights, and returns what it printed.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments).unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}"))
    }

    /// The same, or what it complained of.
    pub fn try_kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        self.kubectl_as(&self.kubeconfig(), arguments, "")
    }

    /// Runs kubectl with the rights of a kubeconfig, with something to read.
    pub fn kubectl_as(&self, kubeconfig: &Path, arguments: &[&str], input: &str) -> Result<String, String> {
        let mut command = Command::new(self.programs.path("kubectl").expect("found at the start"));
        command.arg("--kubeconfig").arg(kubeconfig).args(arguments).env("HOME", self.folder.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("kubectl");
        // One that doesn't read all of it says why.
        let _ = std::io::Write::write_all(&mut child.stdin.take().expect("its input"), input.as_bytes());
        let output = child.wait_with_output().expect("kubectl ends");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Names of the pods that were created in a namespace, each as often as one of that name was: from
    /// etcd's history, which also has those whose creator didn't live to hear of it.
    pub fn created_pods(&self, namespace: &str) -> Vec<String> {
        let pods = format!("/registry/pods/{namespace}/");
        // A key that no pod has, right behind them: its event comes after all of theirs.
        let (end, behind) = ("/registry/pods0", "/registry/pods1");
        let last = self.put(end);
        let range = json!({ "key": bytes(&pods), "range_end": bytes(behind), "start_revision": "1" });
        let mut created = Vec::new();
        for answer in
            serde_json::Deserializer::from_reader(self.etcd("watch", &json!({ "create_request": range })))
                .into_iter::<Value>()
        {
            let answer = answer.expect("etcd's history");
            for event in answer["result"]["events"].as_array().into_iter().flatten() {
                let pair = &event["kv"];
                if pair["mod_revision"] == last {
                    return created;
                }
                // A deletion has no first revision.
                let key: ByteString = serde_json::from_value(pair["key"].clone()).expect("a key");
                let key = String::from_utf8(key.0).expect("a key");
                if let Some(name) = key.strip_prefix(&pods)
                    && pair["create_revision"] == pair["mod_revision"]
                {
                    created.push(name.to_owned());
                }
            }
        }
        panic!("etcd's history ends before {last}");
    }

    /// Has etcd forget how it came to what there is now.
    pub fn compact(&self) {
        let revision = self.put("/compacted");
        let done = self.etcd("kv/compaction", &json!({ "revision": revision, "physical": true }));
        let done: Value = serde_json::from_reader(done).expect("an answer");
        assert!(done["header"]["revision"].is_string(), "{done}");
    }

    /// Writes a key that is nobody's; the revision that it has.
    fn put(&self, key: &str) -> Value {
        let put = self.etcd("kv/put", &json!({ "key": bytes(key), "value": bytes("") }));
        let mut put: Value = serde_json::from_reader(put).expect("an answer");
        put["header"]["revision"].take()
    }

    /// Asks etcd itself, by its gateway for JSON; what it answers, as it comes.
    fn etcd(&self, call: &str, request: &Value) -> Answer {
        let mut command = Command::new(self.programs.path("kubectl").expect("found at the start"));
        command.arg(format!("--server=http://127.0.0.1:{}", self.etcd_port));
        command.args(["create", "--raw", &format!("/v3/{call}"), "-f", "-"]).env("HOME", self.folder.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process(command.spawn().expect("kubectl"));
        let mut input = process.0.stdin.take().expect("its input");
        std::io::Write::write_all(&mut input, request.to_string().as_bytes()).expect("written");
        let output = std::io::BufReader::new(process.0.stdout.take().expect("its output"));
        Answer { output, _process: process }
    }

    /// Applies objects.
    pub fn apply(&self, objects: &str) {
        let done = self.kubectl_as(&self.kubeconfig(), &["apply", "-f", "-"], objects);
        done.unwrap_or_else(|error| panic!("{objects}: {error}"));
    }

    /// Makes nodes `PREFIX-0` and so on with a label `pool=PREFIX`, and a namespace of that name.
    pub fn make_pool(&self, prefix: &str, nodes: usize, resources: &str) {
        let mut objects = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {prefix}}}\n");
        for index in 0..nodes {
            objects += &format!(
                "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {prefix}-{index}, labels: {{pool: {prefix}}}}}\n\
                 status: {{capacity: {{{resources}, pods: 110}}, allocatable: {{{resources}, pods: 110}}}}\n"
            );
        }
        self.apply(&objects);
        let selector = format!("pool={prefix}");
        let ready = r#"jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{" "}{end}"#;
        until("the nodes are ready", PATIENCE, || {
            let found = self.try_kubectl(&["get", "nodes", "-l", &selector, "-o", ready]);
            found.is_ok_and(|text| text.split_whitespace().filter(|word| *word == "True").count() == nodes)
        });
        // A controller takes away what keeps pods from a node that is not ready, in its own time.
        until("the nodes take pods", PATIENCE, || {
            let taints = "jsonpath={.items[*].spec.taints[*].key}";
            let found = self.try_kubectl(&["get", "nodes", "-l", &selector, "-o", taints]);
            found.is_ok_and(|text| text.trim().is_empty())
        });
        // What controllers give every namespace; without it pods are refused.
        until("the namespace has its service account", PATIENCE, || {
            self.try_kubectl(&["-n", prefix, "get", "serviceaccount", "default"]).is_ok()
        });
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        // Its logs would be the first question.
        if std::thread::panicking() {
            for name in PROGRAMS {
                let log = std::fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(5).collect();
                eprintln!("{name}: {}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
            }
        }
    }
}
