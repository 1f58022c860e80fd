import sys

try:
    from worker.cli import main
except KeyboardInterrupt:  # so soon that most of the work was importing
    sys.exit(130)

main()
