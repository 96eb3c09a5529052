// A client in Go, by grpc-go and stubs of the protocol's definitions. It submits, watches, explains and cancels jobs, and
// reads their output. WEIR_SERVER is the broker's host and port, WEIR_TOKEN its token.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	weirv1 "weir.test/client/gen/weir/v1"
)

// Beyond all that a slow machine needs: a client must not wait for ever.
const timeout = 2 * time.Minute

// token is sent with each call.
type token string

func (t token) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(t)}, nil
}

// RequireTransportSecurity returns false: the broker listens on loopback only.
func (token) RequireTransportSecurity() bool { return false }

// job is one for this machine's pool, which runs a command in a shell.
func job(name string, cpuMillis uint64, script string) *weirv1.Submission {
	group := &weirv1.TaskGroup{
		Resources: &weirv1.TaskResources{CpuMillis: cpuMillis, MemoryBytes: 64 << 20},
		Run:       &weirv1.TaskGroup_Process{Process: &weirv1.Program{Command: []string{"sh", "-c", script}}},
	}
	constraints := &weirv1.Constraints{Pools: []string{"local"}}
	return &weirv1.Submission{
		Name: name,
		Spec: &weirv1.JobSpec{Groups: []*weirv1.TaskGroup{group}, Constraints: constraints},
	}
}

// waitFor reads a watch until it shows a job in a phase.
func waitFor(watch grpc.ServerStreamingClient[weirv1.WatchJobsResponse], name string, phase weirv1.JobPhase) error {
	for {
		change, err := watch.Recv()
		if err != nil {
			return fmt.Errorf("before the watch showed %s as %s: %w", name, phase, err)
		}
		for _, job := range change.Jobs {
			if job.Name == name && job.Phase == phase {
				return nil
			}
		}
	}
}

// readOutput returns what a job writes until it has ended.
func readOutput(ctx context.Context, jobs weirv1.JobServiceClient, name string) (map[weirv1.LogStream]string, error) {
	logs, err := jobs.Logs(ctx, &weirv1.LogsRequest{Job: &weirv1.JobRef{Name: name}, Follow: true})
	if err != nil {
		return nil, err
	}
	output := map[weirv1.LogStream]string{}
	for {
		piece, err := logs.Recv()
		if errors.Is(err, io.EOF) {
			return output, nil
		}
		if err != nil {
			return nil, err
		}
		output[piece.Stream] += string(piece.Data)
	}
}

func run(ctx context.Context) error {
	connection, err := grpc.NewClient(os.Getenv("WEIR_SERVER"),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithPerRPCCredentials(token(os.Getenv("WEIR_TOKEN"))))
	if err != nil {
		return err
	}
	defer connection.Close()
	jobs := weirv1.NewJobServiceClient(connection)

	watch, err := jobs.WatchJobs(ctx, &weirv1.WatchJobsRequest{})
	if err != nil {
		return err
	}
	// A list of the live jobs. What changes after it is shown, however fast a job ends.
	if list, err := watch.Recv(); err != nil || !list.Relisted {
		return fmt.Errorf("the watch began with %v: %w", list, err)
	}
	hello := job("hello", 100, "echo hello; echo bad >&2")
	if _, err := jobs.Submit(ctx, &weirv1.SubmitRequest{Jobs: []*weirv1.Submission{hello}}); err != nil {
		return err
	}
	output, err := readOutput(ctx, jobs, "hello")
	if err != nil {
		return err
	}
	stdout, stderr := output[weirv1.LogStream_LOG_STREAM_STDOUT], output[weirv1.LogStream_LOG_STREAM_STDERR]
	if stdout != "hello\n" || stderr != "bad\n" {
		return fmt.Errorf("output: %q", output)
	}
	if err := waitFor(watch, "hello", weirv1.JobPhase_JOB_PHASE_SUCCEEDED); err != nil {
		return err
	}

	// One task needs more CPUs than any machine has.
	waits := []*weirv1.Submission{job("waits", 1_000_000, "true")}
	if _, err := jobs.Submit(ctx, &weirv1.SubmitRequest{Jobs: waits, AllowPending: true}); err != nil {
		return err
	}
	why, err := jobs.Why(ctx, &weirv1.WhyRequest{Job: &weirv1.JobRef{Name: "waits"}})
	if err != nil {
		return err
	}
	reasons := map[string]*weirv1.Reason{}
	for _, pool := range why.Groups[0].Pools {
		reasons[pool.Pool] = pool.Reason
	}
	if reasons["local"].GetCode() != "TaskTooLarge" || reasons["local"].GetParameters()["needed"] != "1000000" {
		return fmt.Errorf("why: %v", why)
	}

	sleeps := []*weirv1.Submission{job("sleeps", 100, "sleep 3600")}
	if _, err := jobs.Submit(ctx, &weirv1.SubmitRequest{Jobs: sleeps}); err != nil {
		return err
	}
	if err := waitFor(watch, "sleeps", weirv1.JobPhase_JOB_PHASE_RUNNING); err != nil {
		return err
	}
	both := []*weirv1.JobRef{{Name: "sleeps"}, {Name: "waits"}}
	if _, err := jobs.Cancel(ctx, &weirv1.CancelRequest{Jobs: both}); err != nil {
		return err
	}
	if err := waitFor(watch, "sleeps", weirv1.JobPhase_JOB_PHASE_CANCELLED); err != nil {
		return err
	}
	return checkErrors(ctx, jobs)
}

// checkErrors makes calls that must fail.
func checkErrors(ctx context.Context, jobs weirv1.JobServiceClient) error {
	_, err := jobs.GetJob(ctx, &weirv1.GetJobRequest{Job: &weirv1.JobRef{Name: "nope"}})
	if status.Code(err) != codes.NotFound {
		return fmt.Errorf("an unknown job: %w", err)
	}
	_, err = jobs.Submit(ctx, &weirv1.SubmitRequest{Jobs: []*weirv1.Submission{{}}})
	for _, detail := range status.Convert(err).Details() {
		if fields, ok := detail.(*errdetails.BadRequest); ok {
			if field := fields.FieldViolations[0].Field; field != "jobs[0].spec" {
				return fmt.Errorf("the field of a job without a spec: %s", field)
			}
			return nil
		}
	}
	return fmt.Errorf("a job without a spec: %w", err)
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}
