"""The routes: `router` in `apps/*/router.py` of every app, and the health checks."""

from fastapi import APIRouter

from core.apps import AppImportError, import_app_modules
from core.health import router as health_router


def create_router() -> APIRouter:
    """Return all routes, apps in alphabetical order.

    Raises:
        AppImportError: the router of an app fails to import.
    """
    api = APIRouter()
    api.include_router(health_router)
    for module in import_app_modules("router"):
        router = getattr(module, "router", None)
        if isinstance(router, APIRouter):
            api.include_router(router)
        elif module.__name__.endswith(".router"):
            raise AppImportError(f"{module.__file__}: defines no `router`, an APIRouter")
    return api
