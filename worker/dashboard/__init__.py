"""The dashboard: pages that show jobs, queues, schedules and workers, and act on them.

    from worker.dashboard import Token, dashboard

    app.mount("/jobs", dashboard(auth=Token(os.environ["DASHBOARD_TOKEN"])))

Web applications and `worker.cli` may import it. It imports `worker.admin`, `worker.metrics` and the public modules.
Reading that the command line needs too belongs into `worker.admin`, and must not be put here.
"""

from worker.dashboard.app import dashboard
from worker.dashboard.auth import Auth, Basic, LoopbackOnly, Role, Token, Visitor
from worker.dashboard.redaction import mask_secrets

__all__ = ["Auth", "Basic", "LoopbackOnly", "Role", "Token", "Visitor", "dashboard", "mask_secrets"]
