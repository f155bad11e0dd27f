module pilotage.dev/pause

go 1.26.4
