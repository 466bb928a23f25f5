"""The routes of the workers: who there is, one more, one less."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from router.http.control import as_json
from router.http.schema import AddWorker, WorkersQuery
from router.http.server.inbound import Bodies
from router.http.server.problems import decode, from_query
from router.job import Dispatch, WorkerState
from xgr_runtime.discovery import WorkerAddress
from xgr_runtime.wire.answers import WorkerList, WorkerStatus

_ADD = msgspec.json.Decoder(AddWorker)


class WorkerRoutes:
    """One method per route."""

    def __init__(self, dispatch: Dispatch, bodies: Bodies) -> None:
        self.dispatch = dispatch
        self.bodies = bodies

    async def show(self, request: Request) -> Response:
        if from_query(WorkersQuery, request.query_params).fresh:
            await self.dispatch.refresh()
        workers = [worker_status(state) for state in self.dispatch.workers()]
        return as_json(WorkerList(workers, self.dispatch.discovery_problem))

    async def add(self, request: Request) -> Response:
        """It is not waited for: its state tells when it has answered."""
        async with self.bodies.read(request) as given:
            wanted = decode(_ADD, given)
        state = self.dispatch.add_worker(WorkerAddress(wanted.role, wanted.address))
        return as_json(worker_status(state))

    async def remove(self, request: Request) -> Response:
        """What it has is not waited for: it is in the list of workers until it is forgotten."""
        state = self.dispatch.remove_worker(request.path_params["name"])
        return as_json(worker_status(state), 202)


def worker_status(state: WorkerState) -> WorkerStatus:
    """A worker as /workers reports it."""
    s, hello = state, state.hello
    plain = WorkerStatus(
        *(s.address, s.alive, s.usable, s.problem, s.in_flight, s.role, s.leaving, s.flexible, s.changing)
    )
    if hello is None:
        return plain
    return msgspec.structs.replace(
        plain,
        worker=hello.worker,
        incarnation=f"{hello.incarnation:x}",
        model=hello.model,
        catalogs=hello.catalogs,
        limits=hello.limits,
        load=hello.load,
    )
