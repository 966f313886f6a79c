// Command empty stands for trackless where only the image around it is tested.
package main

func main() {}
