"""The operators' REST API as typed Python calls, as in `SpratClient(url, token).models.list()`.

Answers are the server's JSON as typed dictionaries (`views`), so a field that a newer server adds is not lost.
Every failure is a `sprat_shared.errors.SpratError` with the server's public code and detail.
"""

from sprat_client.api.access_views import AuditView, EnrolmentTokenView, ProjectView, TokenView
from sprat_client.api.client import SpratClient
from sprat_client.api.events import DeliveryView, EventView, WebhookView
from sprat_client.api.reports import SavingsView
from sprat_client.api.rollout_views import RolloutView, WaveView
from sprat_client.api.targeting import GroupView, PreviewView
from sprat_client.api.views import (
    BlobRef,
    CustodyView,
    DatasetView,
    DeviceView,
    DraftView,
    JobView,
    KeyView,
    ModelView,
    NeedView,
    PolicyView,
    ProgressView,
    ReleaseView,
    ReportView,
    RoleView,
    SignedView,
    UpdateView,
    WayView,
)

__all__ = [
    "AuditView",
    "BlobRef",
    "CustodyView",
    "DatasetView",
    "DeliveryView",
    "DeviceView",
    "DraftView",
    "EnrolmentTokenView",
    "EventView",
    "GroupView",
    "JobView",
    "KeyView",
    "ModelView",
    "NeedView",
    "PolicyView",
    "PreviewView",
    "ProgressView",
    "ProjectView",
    "ReleaseView",
    "ReportView",
    "RoleView",
    "RolloutView",
    "SavingsView",
    "SignedView",
    "SpratClient",
    "TokenView",
    "UpdateView",
    "WaveView",
    "WayView",
    "WebhookView",
]
