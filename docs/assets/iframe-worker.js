// Browsers start no workers for a page that is read from disk. There the theme's search runs in a frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(script) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      this.scope = frame.contentWindow;
      this.scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const element = this.scope.document.createElement("script");
      element.src = script;
      this.ready = new Promise((resolve) => element.addEventListener("load", resolve));
      this.scope.document.body.append(element);
    }

    postMessage(data) {
      this.ready.then(() => this.scope.dispatchEvent(new MessageEvent("message", { data })));
    }
  };
}
