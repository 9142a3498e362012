// The API reference in the browser, by swagger-ui.
SwaggerUIBundle({ url: "/openapi.json", dom_id: "#swagger", deepLinking: true });
