"""``python -m qinfer``: the same as the ``qinfer`` command."""

from qinfer.core.cli import main

if __name__ == "__main__":
    main()
