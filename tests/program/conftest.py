import pytest


@pytest.fixture(autouse=True)
def backend_of_pairs(request):
    """The backend of `diffusers_pairs` is known in every test that uses it, whatever ran before in this process."""
    if "diffusers" in request.module.__name__:
        from diffusers_pairs import register_backend

        register_backend()
