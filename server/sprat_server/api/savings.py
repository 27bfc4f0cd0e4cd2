"""/api/v1/reports: what the fleet's records say, summed up."""

from sprat_server.api.auth import Asker
from sprat_server.api.described import raises
from sprat_server.api.routes import operators_router
from sprat_server.db.session import SessionDep
from sprat_server.fleet.savings_schemas import AskedSavings, SavingsView
from sprat_server.flows import savings

router = operators_router(prefix="/reports", tags=["reports"])


@router.post("/savings", responses=raises(not_found=["model.unknown"], invalid=["filter.bad"]))
def report_savings(body: AskedSavings, session: SessionDep, _asker: Asker) -> SavingsView:
    """Say what updates took beside full models: bytes, money, accuracy, and what that makes at the same rate."""
    return savings.savings(session, body)
