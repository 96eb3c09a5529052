// A client in a web page, by connect-web and stubs of the protocol's definitions. It submits, watches, explains and
// cancels jobs, and reads their output.

import { Code, ConnectError, createClient } from "@connectrpc/connect";
import type { Client, Interceptor } from "@connectrpc/connect";
import { createConnectTransport, createGrpcWebTransport } from "@connectrpc/connect-web";
import { JobPhase, JobService, LogStream } from "./gen/weir/v1/job_pb";
import type { WatchJobsResponse } from "./gen/weir/v1/job_pb";

type Jobs = Client<typeof JobService>;

// Beyond all that a slow machine needs: a client must not wait for ever.
const timeoutMs = 120_000;

/** A client that sends the token with each call. */
function connect(protocol: string, server: string, token: string): Jobs {
  const authorize: Interceptor = (next) => (request) => {
    request.header.set("authorization", `Bearer ${token}`);
    return next(request);
  };
  const options = { baseUrl: `http://${server}`, interceptors: [authorize] };
  if (protocol === "grpc-web") {
    return createClient(JobService, createGrpcWebTransport(options));
  }
  return createClient(JobService, createConnectTransport({ ...options, useBinaryFormat: protocol === "connect-binary" }));
}

/** A job for this machine's pool, which runs a command in a shell. */
function job(name: string, cpuMillis: bigint, script: string) {
  const process = { command: ["sh", "-c", script] };
  const group = { resources: { cpuMillis, memoryBytes: 64n << 20n }, run: { case: "process" as const, value: process } };
  return { name, spec: { groups: [group], constraints: { pools: ["local"] } } };
}

/** Reads a watch until it shows a job in a phase. */
async function waitFor(watch: AsyncIterator<WatchJobsResponse>, name: string, phase: JobPhase) {
  for (;;) {
    const { done, value } = await watch.next();
    if (done) {
      throw new Error(`the watch ended before it showed ${name} as ${JobPhase[phase]}`);
    }
    if (value.jobs.some((job) => job.name === name && job.phase === phase)) {
      return;
    }
  }
}

/** What a job writes until it has ended. */
async function readOutput(jobs: Jobs, name: string) {
  const output = new Map<LogStream, string>();
  for await (const piece of jobs.logs({ job: { name }, follow: true }, { timeoutMs })) {
    output.set(piece.stream, (output.get(piece.stream) ?? "") + new TextDecoder().decode(piece.data));
  }
  return output;
}

/** The error of a call that must fail. */
async function refused(call: Promise<unknown>): Promise<ConnectError> {
  const answer = await call.catch((error: unknown) => ConnectError.from(error));
  if (answer instanceof ConnectError) {
    return answer;
  }
  throw new Error("a wrong request was accepted");
}

function check(holds: boolean, what: string, found: unknown) {
  if (!holds) {
    const text = (_: string, value: unknown) => (typeof value === "bigint" ? value.toString() : value);
    throw new Error(`${what}: ${JSON.stringify(found, text)}`);
  }
}

/** Names its jobs after the protocol. */
async function run(protocol: string, server: string, token: string) {
  const jobs = connect(protocol, server, token);
  const [hello, waits, sleeps] = ["hello", "waits", "sleeps"].map((name) => `${name}-${protocol}`);

  const stop = new AbortController();
  const watch = jobs.watchJobs({}, { timeoutMs, signal: stop.signal })[Symbol.asyncIterator]();
  // A list of the live jobs. What changes after it is shown, however fast a job ends.
  const list = await watch.next();
  check(list.value?.relisted === true, "the watch's first message", list.value);
  await jobs.submit({ jobs: [job(hello, 100n, "echo hello; echo bad >&2")] });
  const output = await readOutput(jobs, hello);
  check(output.get(LogStream.STDOUT) === "hello\n", "standard output", [...output]);
  check(output.get(LogStream.STDERR) === "bad\n", "standard error", [...output]);
  await waitFor(watch, hello, JobPhase.SUCCEEDED);

  // One task needs more CPUs than any machine has.
  await jobs.submit({ jobs: [job(waits, 1_000_000n, "true")], allowPending: true });
  const why = await jobs.why({ job: { name: waits } });
  const reason = why.groups[0].pools.find((pool) => pool.pool === "local")?.reason;
  check(reason?.code === "TaskTooLarge" && reason.parameters.needed === "1000000", "why", why);

  await jobs.submit({ jobs: [job(sleeps, 100n, "sleep 3600")] });
  await waitFor(watch, sleeps, JobPhase.RUNNING);
  await jobs.cancel({ jobs: [{ name: sleeps }, { name: waits }] });
  await waitFor(watch, sleeps, JobPhase.CANCELLED);
  stop.abort();

  const unknown = await refused(jobs.getJob({ job: { name: "nope" } }));
  check(unknown.code === Code.NotFound, "an unknown job", unknown.message);
  const ended = await refused(readOutput(jobs, "nope"));
  check(ended.code === Code.NotFound, "the output of an unknown job", ended.message);
  const wrong = await refused(jobs.submit({ jobs: [{ spec: {} }] }));
  const details = wrong.details.map((detail) => ("type" in detail ? detail.type : detail.desc.typeName));
  check(wrong.code === Code.InvalidArgument && details.includes("google.rpc.BadRequest"), wrong.message, details);
}

// What the test's script calls.
Object.assign(globalThis, { run });
