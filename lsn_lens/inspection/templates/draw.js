document.querySelectorAll("[data-text]").forEach(place => {
  place.id = `text-${Math.random().toString(36).slice(2)}`;  // a notebook can show one neuron twice
  CircuitsVis.render(place.id, CircuitsVis.ColoredTokens, JSON.parse(place.dataset.text));
  place.removeAttribute("data-text");
});
