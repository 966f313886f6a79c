module example.org/sound

go 1.26.0
