from xlift.cli import main

main()
