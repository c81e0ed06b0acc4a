document.documentElement.classList.add("js");
all(".tabs").forEach(tabs);
all(".frames").forEach(frames);
all("svg.chart").forEach(plot);
all(".switches").forEach(switches);
all(".matrix").forEach(matrix);
all("#compare").forEach(compare);
document.documentElement.dataset.ready = "yes";
