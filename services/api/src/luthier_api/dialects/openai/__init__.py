"""The routes below `/v1`, as clients written for OpenAI call them."""

from luthier_api.dialects.openai.chat import ChatController
from luthier_api.dialects.openai.files import FilesController
from luthier_api.dialects.openai.jobs import JobsController
from luthier_api.dialects.openai.models import ModelsController

CONTROLLERS = (FilesController, JobsController, ModelsController, ChatController)
