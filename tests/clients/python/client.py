"""A client in Python, by grpcio and stubs of the protocol's definitions. It submits, watches, explains and cancels jobs,
and reads their output. WEIR_SERVER is the broker's host and port, WEIR_TOKEN its token."""

import os

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from weir.v1 import job_pb2, job_pb2_grpc, spec_pb2

# Beyond all that a slow machine needs: a client must not wait for ever.
TIMEOUT = 120


def job(name, cpu_millis, script):
    """A job for this machine's pool, which runs a command in a shell."""
    resources = spec_pb2.TaskResources(cpu_millis=cpu_millis, memory_bytes=64 << 20)
    process = spec_pb2.Program(command=["sh", "-c", script])
    group = spec_pb2.TaskGroup(resources=resources, process=process)
    constraints = spec_pb2.Constraints(pools=["local"])
    return job_pb2.Submission(name=name, spec=spec_pb2.JobSpec(groups=[group], constraints=constraints))


def wait_for(watch, name, phase):
    """Reads a watch until it shows a job in a phase."""
    for change in watch:
        if any(job.name == name and job.phase == phase for job in change.jobs):
            return
    raise AssertionError(f"the watch ended before it showed {name} as {phase}")


def refused(call, request, **options):
    """The error of a call that must fail."""
    try:
        answer = call(request, **options)
    except grpc.RpcError as error:
        return error
    raise AssertionError(f"it was accepted: {answer}")


def main():
    channel = grpc.insecure_channel(os.environ["WEIR_SERVER"])
    jobs = job_pb2_grpc.JobServiceStub(channel)
    options = {"metadata": [("authorization", f"Bearer {os.environ['WEIR_TOKEN']}")], "timeout": TIMEOUT}

    watch = jobs.WatchJobs(job_pb2.WatchJobsRequest(), **options)
    # A list of the live jobs. What changes after it is shown, however fast a job ends.
    assert next(watch).relisted
    hello = job("hello", 100, "echo hello; echo bad >&2")
    submitted = jobs.Submit(job_pb2.SubmitRequest(jobs=[hello]), **options)
    assert [job.name for job in submitted.jobs] == ["hello"], submitted
    output = {job_pb2.LOG_STREAM_STDOUT: b"", job_pb2.LOG_STREAM_STDERR: b""}
    for piece in jobs.Logs(job_pb2.LogsRequest(job=job_pb2.JobRef(name="hello"), follow=True), **options):
        output[piece.stream] += piece.data
    assert list(output.values()) == [b"hello\n", b"bad\n"], output
    wait_for(watch, "hello", job_pb2.JOB_PHASE_SUCCEEDED)

    # One task needs more CPUs than any machine has.
    waits = job_pb2.SubmitRequest(jobs=[job("waits", 1_000_000, "true")], allow_pending=True)
    jobs.Submit(waits, **options)
    why = jobs.Why(job_pb2.WhyRequest(job=job_pb2.JobRef(name="waits")), **options)
    reasons = {pool.pool: pool.reason for pool in why.groups[0].pools}
    assert reasons["local"].code == "TaskTooLarge", why
    assert reasons["local"].parameters["needed"] == "1000000", why

    jobs.Submit(job_pb2.SubmitRequest(jobs=[job("sleeps", 100, "sleep 3600")]), **options)
    wait_for(watch, "sleeps", job_pb2.JOB_PHASE_RUNNING)
    both = [job_pb2.JobRef(name="sleeps"), job_pb2.JobRef(name="waits")]
    jobs.Cancel(job_pb2.CancelRequest(jobs=both), **options)
    wait_for(watch, "sleeps", job_pb2.JOB_PHASE_CANCELLED)
    watch.cancel()

    unknown = refused(jobs.GetJob, job_pb2.GetJobRequest(job=job_pb2.JobRef(name="nope")), **options)
    assert unknown.code() == grpc.StatusCode.NOT_FOUND, unknown
    wrong = refused(jobs.Submit, job_pb2.SubmitRequest(jobs=[job_pb2.Submission()]), **options)
    assert wrong.code() == grpc.StatusCode.INVALID_ARGUMENT, wrong
    fields = error_details_pb2.BadRequest()
    assert any(detail.Unpack(fields) for detail in rpc_status.from_call(wrong).details), wrong
    assert fields.field_violations[0].field == "jobs[0].spec", fields


if __name__ == "__main__":
    main()
