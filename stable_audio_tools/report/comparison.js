/* The page of several runs. */

showCharts();
showDemos();
showContents();
