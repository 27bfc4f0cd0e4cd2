"""Jobs: what the server's workers do, and waiting for it."""

import time
from collections.abc import Callable, Iterator
from typing import Final, cast

from sprat_client.api.naming import is_full_id, unique_match
from sprat_client.api.transport import Transport
from sprat_client.api.views import JOB_ENDS, JobView
from sprat_shared.errors import Conflict, InvalidInput, SpratError, TryLater

_PATIENCE_S: Final = 60.0
_SLOWEST_S: Final = 2.0


class JobFailed(SpratError):
    """A job ended in an error; the message is the worker's."""

    code = "job.failed"


class Jobs:
    """Work that the server does in a worker."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, *, limit: int | None = None) -> list[JobView]:
        """Return the jobs, newest first, at most `limit` of them."""
        return list(self._transport.pages("/jobs", limit=limit))

    def get(self, job_id: str) -> JobView:
        """Return one job."""
        return cast("JobView", self._transport.get(f"/jobs/{job_id}"))

    def resolve(self, wanted: str) -> str:
        """Return the id of the job that `wanted` is, or uniquely starts or ends."""
        return wanted if is_full_id(wanted) else unique_match("job", wanted, [job["id"] for job in self.list()])

    def cancel(self, job_id: str) -> JobView:
        """Ask a job to stop; a running one stops at its next checkpoint."""
        answer = self._transport.post(f"/jobs/{job_id}/cancel")
        return cast("JobView", answer.get("job", answer))

    def follow(self, job_id: str, *, timeout_s: float | None = None) -> Iterator[JobView]:
        """Yield the job whenever it changed, until and including its end.

        A server that restarts meanwhile is waited for (up to a minute without an answer).

        Raises:
            TryLater: `timeout_s` passed before the end; the job goes on.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        last: JobView | None = None
        pause_s = 0.1
        while True:
            job = cast("JobView", self._transport.patient_get(f"/jobs/{job_id}", patience_s=_PATIENCE_S))
            if job != last:
                yield job
                pause_s = 0.1
            if job["state"] in JOB_ENDS:
                return
            last = job
            if deadline is not None and time.monotonic() >= deadline:
                raise TryLater(f"job {job_id} is still {job['state']} after {timeout_s:g} s; it goes on")
            time.sleep(pause_s)
            pause_s = min(1.5 * pause_s, _SLOWEST_S)

    def wait(
        self, job_id: str, progress: Callable[[JobView], None] | None = None, *, timeout_s: float | None = None
    ) -> JobView:
        """Return the job once it has succeeded; `progress` sees it at every change.

        Raises:
            JobFailed: it failed; the message is the worker's.
            Conflict: it was cancelled.
            TryLater: `timeout_s` passed before the end; the job goes on.
        """
        job: JobView | None = None
        for job in self.follow(job_id, timeout_s=timeout_s):
            if progress is not None:
                progress(job)
        if job is None:  # follow yields at least once; this is for the type checker
            raise InvalidInput(f"job {job_id} cannot be followed")
        return succeeded(job)


def succeeded(job: JobView) -> JobView:
    """Return an ended job if it succeeded.

    Raises:
        JobFailed: it failed; the message is the worker's.
        Conflict: it was cancelled.
    """
    if job["state"] == "failed":
        error = job["error"] or {"code": JobFailed.code, "message": "no reason was given; see the worker's log"}
        raise JobFailed(f"{job['kind']} failed: {error['message']}", code=error["code"])
    if job["state"] == "cancelled":
        raise Conflict(f"job {job['id']} ({job['kind']}) was cancelled", code="job.cancelled")
    return job
