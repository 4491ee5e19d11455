"""The routes: `router` in `apps/*/router.py` of every app, and the health checks."""

from fastapi import APIRouter

from core.apps import import_app_modules
from core.health import router as health_router


def create_router() -> APIRouter:
    """Return all routes, apps in alphabetical order.

    Raises:
        AppImportError: the router of an app fails to import.
    """
    api = APIRouter()
    api.include_router(health_router)
    for module in import_app_modules("router"):
        api.include_router(module.router)
    return api
