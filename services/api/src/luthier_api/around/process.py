"""What lies around the requests of one process, and is shared by all of them."""

import secrets
import socket

from luthier_api.around.connections import Connections
from luthier_api.around.failed import FailedKeys
from luthier_api.around.idempotency import LEASE_S
from luthier_api.audit import AuditLog
from luthier_api.rates import Windows
from luthier_api.services.repeats import Repeats
from luthier_api.services.waiting import Bases, InUse, WaitingRoom
from luthier_api.settings import ApiSettings
from luthier_api.store.rates import share_windows
from luthier_api.store.reservations import Reservations
from luthier_common.kit.clock import Clock
from luthier_common.kit.mongo import Database
from luthier_common.kit.room import Room

SHARE_S = 1.0
FLUSH_S = 1.0


class Around:
    """Counters, the audit chain, and what is known of repetitions."""

    def __init__(self, db: Database, clock: Clock, settings: ApiSettings) -> None:
        def now_s() -> float:
            return clock.now().timestamp()

        self._db = db
        self.windows = Windows(now_s)
        self.refused = Windows(now_s)
        self.failed = FailedKeys(Windows(now_s), settings.failed_keys_per_minute)
        self.audit_log = AuditLog(db, f"api-{socket.gethostname()}-{secrets.token_hex(4)}", clock)
        self.reservations = Reservations(db, ttl_s=settings.idempotency_s, lease_s=LEASE_S)
        self.repeats = Repeats(db, clock, ttl_s=settings.retry_hash_s)
        self.connections = Connections(clock, is_behind_proxies=bool(settings.trusted_proxies))
        self.bases = Bases(db)
        self.in_use = InUse(db)
        self.room = WaitingRoom()

    def start(self, room: Room) -> None:
        """Spawn the loops that tell other processes and finish what an outage left."""
        room.spawn("rates", room.every(SHARE_S, lambda: share_windows(self._db, self.windows)), grace_s=1)
        room.spawn("audit-log", room.every(FLUSH_S, self.audit_log.flush), grace_s=1)
