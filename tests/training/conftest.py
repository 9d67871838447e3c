"""What tests of training share."""

import pytest


@pytest.fixture(scope="session")
def ranks():
    """Two processes that train together; see `ranks.Ranks`."""
    from ranks import Ranks

    both = Ranks()
    yield both
    both.close()
