"""The routes of the apps: `router` in `apps/*/router.py` of every one."""

from fastapi import APIRouter

from core.apps import AppImportError, import_app_modules


def find_routers() -> list[APIRouter]:
    """Return the routers, those of the apps in alphabetical order.

    Not one that includes them all: each level has its price in each request.

    Raises:
        AppImportError: the router of an app fails to import.
    """
    routers: list[APIRouter] = []
    for module in import_app_modules("router"):
        router = getattr(module, "router", None)
        if isinstance(router, APIRouter):
            routers.append(router)
        elif module.__name__.endswith(".router"):
            raise AppImportError(f"{module.__file__}: defines no `router`, an APIRouter")
    return routers
