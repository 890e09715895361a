"""The routes below `/v1`, as clients written for OpenAI call them."""

from luthier_api.dialects.openai.audit_logs import AuditLogsController
from luthier_api.dialects.openai.chat import ChatController
from luthier_api.dialects.openai.files import FilesController
from luthier_api.dialects.openai.follow import FollowController
from luthier_api.dialects.openai.graders import GradersController
from luthier_api.dialects.openai.jobs import JobsController
from luthier_api.dialects.openai.models import ModelsController
from luthier_api.dialects.openai.organization import ProjectsController, ProjectUsersController, UsersController
from luthier_api.dialects.openai.organization_keys import (
    AdminKeysController,
    ProjectKeysController,
    ServiceAccountsController,
)
from luthier_api.dialects.openai.permissions import PermissionsController
from luthier_api.dialects.openai.planning import PlanningController
from luthier_api.dialects.openai.responses import ResponsesController
from luthier_api.dialects.openai.uploads import UploadsController

CONTROLLERS = (
    FilesController,
    UploadsController,
    JobsController,
    FollowController,
    PlanningController,
    GradersController,
    ModelsController,
    PermissionsController,
    ChatController,
    ResponsesController,
    AuditLogsController,
    ProjectsController,
    UsersController,
    ProjectUsersController,
    ProjectKeysController,
    AdminKeysController,
    ServiceAccountsController,
)
